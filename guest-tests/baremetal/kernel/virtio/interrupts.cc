#include "kernel/virtio/interrupts.h"

#include "kernel/apic.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/traps.h"

namespace kernel {
namespace {

constexpr uint64_t kSettleMs = 5;

unsigned counts[kMsixCounted];
uint32_t takers[kMsixCounted];

void on_msix(TrapFrame& frame) {
  takers[frame.vector - kVectorMsix] = lapic_id();
  __atomic_fetch_add(&counts[frame.vector - kVectorMsix], 1, __ATOMIC_SEQ_CST);
  lapic_eoi();
}

}  // namespace

void count_interrupts(VirtioDevice& device, unsigned entries) {
  CHECK(entries <= kMsixCounted && entries <= device.msix().size());
  lapic_init();
  for (unsigned i = 0; i < kMsixCounted; ++i) counts[i] = 0;
  device.msix().enable();
  for (unsigned i = 0; i < entries; ++i) {
    set_trap_handler(kVectorMsix + i, on_msix);
    device.msix().route(i, static_cast<uint8_t>(kVectorMsix + i), lapic_id());
  }
  interrupts_on();
}

unsigned interrupts_seen(unsigned entry) {
  return __atomic_load_n(&counts[entry], __ATOMIC_SEQ_CST);
}

uint32_t interrupt_taken_by(unsigned entry) { return takers[entry]; }

unsigned interrupts_settled(unsigned entry) {
  wait_until([] { return false; }, kSettleMs);
  return interrupts_seen(entry);
}

}  // namespace kernel
