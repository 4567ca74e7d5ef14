// Two CPUs that do not agree: one sets devices up and resets them while the other writes to their
// registers, kicks, changes descriptors under the device's hands and moves BARs away.
#include "guests/hostile.h"
#include "kernel/apic.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"
#include "kernel/smp.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr unsigned kRounds = 60;
// The other CPU is slow where instructions are emulated: it ends by this flag.
uint32_t stop;
uint32_t stopped;
Target* volatile under_attack;

bool told_to_stop() { return __atomic_load_n(&stop, __ATOMIC_SEQ_CST) != 0; }

// Whatever is read is not looked at: the device may be anywhere in its life.
void disturb(Target& t, unsigned i) {
  VirtioDevice& d = t.device();
  const PciFunction& pci = d.pci();
  switch (i % 8) {
    case 0:
      mmio_write<uint16_t>(d.notify_address(), 0);
      break;
    case 1:
      t.queue().desc()[0].next = static_cast<uint16_t>(i);
      t.queue().desc()[0].addr = ram_end() - i % 4096;
      break;
    case 2:
      t.queue().avail()->idx = static_cast<uint16_t>(i);
      break;
    case 3:
      d.set_common16(VIRTIO_PCI_COMMON_Q_SELECT, 0);
      d.set_common16(VIRTIO_PCI_COMMON_Q_RESET, 1);
      break;
    case 4:
      d.set_status(i % 16 == 4 ? 0 : 0x0f);
      break;
    case 5:
      pci.write16(kPciCommand, 0);
      pci.write16(kPciCommand, kPciCommandMemory | kPciCommandBusMaster);
      break;
    case 6:
      d.msix().mask(0, i % 16 == 6);
      break;
    default:
      d.common32(VIRTIO_PCI_COMMON_DF);
      d.status();
  }
}

void disturb_until_stopped(unsigned) {
  for (unsigned i = 0; !told_to_stop(); ++i) {
    Target* t = under_attack;
    if (t != nullptr) disturb(*t, i);
  }
  __atomic_store_n(&stopped, 1u, __ATOMIC_SEQ_CST);
}

// As restart(), but nothing is checked: the other CPU is at it too.
void set_up_blindly(Target& t) {
  VirtioDevice& d = t.device();
  d.set_status(0);
  d.set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
  d.accept_features(feature(VIRTIO_F_VERSION_1) | feature(VIRTIO_RING_F_INDIRECT_DESC) |
                    feature(VIRTIO_F_RING_RESET));
  d.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
  d.select_queue(t.queue().index());
  d.set_common64(VIRTIO_PCI_COMMON_Q_DESCLO, physical(t.queue().desc()));
  d.set_common64(VIRTIO_PCI_COMMON_Q_AVAILLO, physical(t.queue().avail()));
  d.set_common64(VIRTIO_PCI_COMMON_Q_USEDLO, physical(t.queue().used()));
  d.set_common16(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
  d.driver_ok();
  t.lay_good_chain();
  send_head(t, 0);
}

}  // namespace

void race() {
  lapic_init();
  Target* const targets[] = {&blk_target(), &rng_target(), &console_target()};
  CHECK(start_other_cpus(disturb_until_stopped) == 1);
  CHECK_SOON(other_cpus_running() == 1);
  for (unsigned i = 0; i < kRounds; ++i) {
    Target& t = *targets[i % 3];
    under_attack = &t;
    set_up_blindly(t);
  }
  __atomic_store_n(&stop, 1u, __ATOMIC_SEQ_CST);
  CHECK_SOON(__atomic_load_n(&stopped, __ATOMIC_SEQ_CST) == 1);
  for (Target* t : targets) t->must_still_work();
}

}  // namespace hostile
