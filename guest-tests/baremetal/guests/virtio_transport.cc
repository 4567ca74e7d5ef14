// The transport and the queues of a good driver, with a block device behind them.
#include "guests/virtio.h"
#include "kernel/acpi.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"
#include "kernel/smp.h"
#include "kernel/virtio/blk.h"
#include "kernel/virtio/interrupts.h"

using namespace kernel;

namespace virtio {
namespace {

constexpr unsigned kBatch = 8;

// Several reads of one sector each in flight at once.
struct Batch {
  BlkRequest requests[kBatch];
  uint8_t data[kBatch][kSectorSize];
};

Batch& batch() {
  static auto* b = static_cast<Batch*>(alloc_pages(2));
  static_assert(sizeof(Batch) <= 2 * kPageSize);
  return *b;
}

uint8_t* buffer() { return batch().data[0]; }

void publish_read(Virtqueue& queue, unsigned slot, uint64_t sector, bool is_indirect) {
  Batch& b = batch();
  b.requests[slot].header = {VIRTIO_BLK_T_IN, 0, sector};
  b.requests[slot].status = kStatusUnwritten;
  memset(b.data[slot], 0, 32);
  const Buffer buffers[] = {readable(&b.requests[slot].header, sizeof(virtio_blk_outhdr)),
                            writable(b.data[slot], kSectorSize),
                            writable(&b.requests[slot].status, 1)};
  queue.publish(is_indirect ? queue.add_indirect(buffers, 3) : queue.add(buffers, 3));
}

void finish_reads(Virtqueue& queue, unsigned count, uint64_t first_sector) {
  for (unsigned done = 0; done < count; ++done) {
    CHECK_SOON(queue.has_used());
    Used used = {};
    CHECK(queue.pop(used));
    CHECK_EQ(used.length, kSectorSize + 1);
  }
  CHECK(!queue.has_used());
  for (unsigned i = 0; i < count; ++i) {
    CHECK_EQ(__atomic_load_n(&batch().requests[i].status, __ATOMIC_ACQUIRE), VIRTIO_BLK_S_OK);
    CHECK(sector_has_its_text(batch().data[i], first_sector + i));
  }
}

void check_reads(BlkDevice& disk, uint64_t sector, unsigned queue = 0) {
  memset(buffer(), 0, 32);
  CHECK_EQ(disk.read(sector, buffer(), kSectorSize, queue), VIRTIO_BLK_S_OK);
  CHECK(sector_has_its_text(buffer(), sector));
}

BlkDevice disk;

}  // namespace

// Section 3.1.1, in its steps.
void negotiation() {
  VirtioDevice device;
  CHECK(device.open(2));
  device.reset();
  CHECK_EQ(device.status(), 0);
  const uint64_t offered = device.offered_features();
  CHECK((offered & feature(VIRTIO_F_VERSION_1)) != 0);
  CHECK((offered & feature(VIRTIO_RING_F_INDIRECT_DESC)) != 0);
  CHECK((offered & feature(VIRTIO_RING_F_EVENT_IDX)) != 0);
  CHECK((offered & feature(VIRTIO_F_RING_RESET)) != 0);
  device.set_common32(VIRTIO_PCI_COMMON_DFSELECT, 2);
  CHECK_EQ(device.common32(VIRTIO_PCI_COMMON_DF), 0);  // words that do not exist offer nothing
  CHECK(device.queue_count() >= 1);

  device.start(0);
  CHECK_EQ(device.status(),
           VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
  device.set_common32(VIRTIO_PCI_COMMON_GFSELECT, 1);
  CHECK_EQ(device.common32(VIRTIO_PCI_COMMON_GF), 1);  // VERSION_1, bit 32, was accepted

  // Without VERSION_1 a modern device refuses FEATURES_OK (section 6.2)...
  device.reset();
  device.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
  device.add_status(VIRTIO_CONFIG_S_DRIVER);
  device.accept_features(0);
  device.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
  CHECK_EQ(device.status() & VIRTIO_CONFIG_S_FEATURES_OK, 0);
  // ... and a reset takes it all back.
  device.reset();
  for (uint16_t i = 0; i < device.queue_count(); ++i) {
    device.select_queue(i);
    CHECK_EQ(device.common16(VIRTIO_PCI_COMMON_Q_ENABLE), 0);
    CHECK(device.common16(VIRTIO_PCI_COMMON_Q_SIZE) > 0);
  }
  device.select_queue(static_cast<uint16_t>(device.queue_count()));
  CHECK_EQ(device.common16(VIRTIO_PCI_COMMON_Q_SIZE), 0);  // section 4.1.4.3.1: unavailable
}

void interrupts() {
  BlkDevice::Options options;
  options.first_vector = 1;
  disk.open(options);
  count_interrupts(disk.device(), 2);
  for (unsigned i = 1; i <= 4; ++i) {
    check_reads(disk, i);
    CHECK_SOON(interrupts_seen(1) == i);
  }
  CHECK_EQ(interrupts_settled(1), 4);
  CHECK_EQ(interrupts_seen(0), 0);
  // Section 2.7.7: the driver says it polls.
  disk.queue().set_no_interrupt(true);
  full_fence();
  check_reads(disk, 9);
  CHECK_EQ(interrupts_settled(1), 4);
  disk.queue().set_no_interrupt(false);
  full_fence();
  check_reads(disk, 10);
  CHECK_SOON(interrupts_seen(1) == 5);
}

// A masked entry holds its interrupt in the pending bit; so does the function's mask.
void interrupt_mask() {
  BlkDevice::Options options;
  options.first_vector = 1;
  disk.open(options);
  count_interrupts(disk.device(), 2);
  Msix& msix = disk.device().msix();
  CHECK(!msix.is_pending(1));
  msix.mask(1, true);
  check_reads(disk, 1);
  CHECK_SOON(msix.is_pending(1));
  CHECK_EQ(interrupts_settled(1), 0);
  msix.mask(1, false);
  CHECK_SOON(interrupts_seen(1) == 1);
  CHECK(!msix.is_pending(1));
  msix.mask_all(true);
  check_reads(disk, 2);
  CHECK_EQ(interrupts_settled(1), 1);
  msix.mask_all(false);
  CHECK_SOON(interrupts_seen(1) == 2);
  // Moved to another vector while masked, it arrives there.
  msix.route(1, kVectorMsix, 0);
  check_reads(disk, 3);
  CHECK_SOON(interrupts_seen(0) == 1);
  CHECK_EQ(interrupts_settled(1), 2);
}

// An entry may name any CPU.
void interrupt_cpu() {
  BlkDevice::Options options;
  options.first_vector = 1;
  disk.open(options);
  count_interrupts(disk.device(), 2);
  CHECK(start_other_cpus([](unsigned) {
          for (;;) interrupts_on_and_halt();
        }) == 1);
  CHECK_SOON(other_cpus_running() == 1);
  const Madt madt = read_madt();
  for (unsigned i = 0; i < 4; ++i) {
    const uint32_t cpu = madt.apic_ids[i % 2];
    disk.device().msix().route(1, kVectorMsix + 1, cpu);
    check_reads(disk, i);
    CHECK_SOON(interrupts_seen(1) == i + 1);
    CHECK_EQ(interrupt_taken_by(1), cpu);
  }
}

void multi_queue() {
  BlkDevice::Options options;
  options.required = feature(VIRTIO_BLK_F_MQ);
  options.queues = 2;
  options.first_vector = 1;
  disk.open(options);
  count_interrupts(disk.device(), 3);
  CHECK_EQ(disk.device().config<uint16_t>(offsetof(virtio_blk_config, num_queues)),
           disk.device().queue_count());
  CHECK_EQ(disk.device().queue_count(), option_number("queues", 2));
  check_reads(disk, 20, 0);
  CHECK_SOON(interrupts_seen(1) == 1);
  CHECK_EQ(interrupts_seen(2), 0);
  check_reads(disk, 21, 1);
  CHECK_SOON(interrupts_seen(2) == 1);
  CHECK_EQ(interrupts_settled(1), 1);
  // Both at once.
  for (unsigned i = 0; i < 4; ++i) publish_read(disk.queue(0), i, 30 + i, false);
  for (unsigned i = 4; i < 8; ++i) publish_read(disk.queue(1), i, 30 + i, false);
  disk.queue(0).kick();
  disk.queue(1).kick();
  Used used = {};
  for (unsigned q = 0; q < 2; ++q) {
    for (unsigned i = 0; i < 4; ++i) CHECK_SOON(disk.queue(q).pop(used));
  }
  for (unsigned i = 0; i < 8; ++i) CHECK(sector_has_its_text(batch().data[i], 30 + i));
}

void indirect() {
  BlkDevice::Options options;
  options.required = feature(VIRTIO_RING_F_INDIRECT_DESC);
  options.queue_size = 4;  // eight chains of three would not fit in four direct descriptors
  disk.open(options);
  for (unsigned round = 0; round < 2; ++round) {
    for (unsigned i = 0; i < 4; ++i) publish_read(disk.queue(), i, 40 + i, true);
    disk.queue().kick();
    finish_reads(disk.queue(), 4, 40);
  }
}

// Section 2.7.5.3.2: plain descriptors may be followed by one indirect descriptor.
void indirect_tail() {
  BlkDevice::Options options;
  options.required = feature(VIRTIO_RING_F_INDIRECT_DESC);
  disk.open(options);
  Batch& b = batch();
  b.requests[0].header = {VIRTIO_BLK_T_IN, 0, 50};
  b.requests[0].status = kStatusUnwritten;
  const Buffer rest[] = {writable(b.data[0], kSectorSize), writable(&b.requests[0].status, 1)};
  const Buffer head[] = {readable(&b.requests[0].header, sizeof(virtio_blk_outhdr))};
  Virtqueue& queue = disk.queue();
  const uint16_t tail = queue.add_indirect(rest, 2);
  const uint16_t first = queue.add(head, 1);
  queue.desc()[first].flags = VRING_DESC_F_NEXT;
  queue.desc()[first].next = tail;
  queue.publish(first);
  queue.kick();
  finish_reads(queue, 1, 50);
}

// Section 2.7.7.2: one interrupt when used_event is passed, none before.
void event_idx() {
  BlkDevice::Options options;
  options.required = feature(VIRTIO_RING_F_EVENT_IDX);
  options.first_vector = 1;
  disk.open(options);
  count_interrupts(disk.device(), 2);
  Virtqueue& queue = disk.queue();
  // The first interrupt after a reset comes in any case on some devices: get it over with.
  queue.set_used_event(queue.last_used());
  check_reads(disk, 59);
  CHECK_SOON(interrupts_seen(1) == 1);
  unsigned expected = 1;
  for (unsigned round = 0; round < 3; ++round) {
    queue.set_used_event(static_cast<uint16_t>(queue.last_used() + kBatch - 1));
    for (unsigned i = 0; i < kBatch; ++i) {
      publish_read(queue, i, 60 + i, false);
      queue.kick();
    }
    finish_reads(queue, kBatch, 60);
    ++expected;
    CHECK_SOON(interrupts_seen(1) == expected);
    CHECK_EQ(interrupts_settled(1), expected);
  }
  // An event that is not reached: no interrupt at all.
  queue.set_used_event(static_cast<uint16_t>(queue.last_used() + 1000));
  check_reads(disk, 70);
  check_reads(disk, 71);
  CHECK_EQ(interrupts_settled(1), expected);
}

// Section 2.6.1, 4.1.4.3: one queue is reset and enabled again, with another size, while the device
// runs.
void queue_reset() {
  BlkDevice::Options options;
  options.required = feature(VIRTIO_F_RING_RESET);
  disk.open(options);
  VirtioDevice& device = disk.device();
  for (unsigned round = 0; round < 3; ++round) {
    check_reads(disk, 80 + round);
    device.select_queue(0);
    device.set_common16(VIRTIO_PCI_COMMON_Q_RESET, 1);
    CHECK_SOON(device.common16(VIRTIO_PCI_COMMON_Q_RESET) == 0);
    CHECK_SOON(device.common16(VIRTIO_PCI_COMMON_Q_ENABLE) == 0);
    CHECK(!device.needs_reset());
    // Nothing is read from the old rings while it is off.
    disk.queue().kick_always();
    disk.queue().reopen();
  }
  check_reads(disk, 90);
}

void device_reset() {
  BlkDevice::Options options;
  options.optional = feature(VIRTIO_RING_F_EVENT_IDX) | feature(VIRTIO_RING_F_INDIRECT_DESC);
  disk.open(options);
  for (unsigned round = 0; round < 3; ++round) {
    check_reads(disk, 100 + round);
    // With requests in flight: when the reset is done the device no longer touches memory.
    for (unsigned i = 0; i < kBatch; ++i) publish_read(disk.queue(), i, 110 + i, false);
    disk.queue().kick_always();
    disk.device().reset();
    for (unsigned i = 0; i < kBatch; ++i) memset(batch().data[i], 0x77, kSectorSize);
    disk.restart();
    interrupts_settled(0);
    for (unsigned i = 0; i < kBatch; ++i) CHECK_EQ(batch().data[i][0], 0x77);
  }
  check_reads(disk, 105);
}

// Section 4.1.4.9: the same registers through the window in configuration space.
void config_access() {
  disk.open({});
  VirtioDevice& device = disk.device();
  const PciFunction& pci = device.pci();
  uint8_t window = 0;
  uint8_t common = 0;
  uint8_t config = 0;
  for (uint8_t at = 0; (at = find_capability(pci, kPciCapVendor, at)) != 0;) {
    const uint8_t type = pci.read8(static_cast<uint16_t>(at + 3));
    if (type == VIRTIO_PCI_CAP_PCI_CFG) window = at;
    if (type == VIRTIO_PCI_CAP_COMMON_CFG && common == 0) common = at;
    if (type == VIRTIO_PCI_CAP_DEVICE_CFG && config == 0) config = at;
  }
  CHECK(window != 0 && common != 0 && config != 0);
  auto aim = [&](uint8_t capability, uint32_t offset, uint32_t length) {
    auto field = [](uint8_t base, uint32_t at) { return static_cast<uint16_t>(base + at); };
    pci.write8(field(window, 4), pci.read8(field(capability, 4)));
    pci.write32(field(window, 8), pci.read32(field(capability, 8)) + offset);
    pci.write32(field(window, 12), length);
  };
  const auto data = static_cast<uint16_t>(window + 16);
  aim(common, VIRTIO_PCI_COMMON_STATUS, 1);
  CHECK_EQ(pci.read8(data), device.status());
  aim(common, VIRTIO_PCI_COMMON_NUMQ, 2);
  CHECK_EQ(pci.read16(data), device.queue_count());
  aim(common, VIRTIO_PCI_COMMON_Q_SELECT, 2);
  pci.write16(data, 1);
  CHECK_EQ(device.common16(VIRTIO_PCI_COMMON_Q_SELECT), 1);
  aim(config, 0, 4);
  CHECK_EQ(pci.read32(data), device.config<uint32_t>(0));
  check_reads(disk, 1);
}

}  // namespace virtio
