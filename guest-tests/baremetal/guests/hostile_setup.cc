// Nonsense while a device is set up: ring addresses, queue sizes, features, statuses; and doorbells
// rung at the wrong time (virtio 1.2, sections 2.1, 2.2, 3.1 and 4.1.4.3).
#include "guests/hostile.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr uint64_t kMmioHole = 0xc8000000;
constexpr uint64_t kSettleMs = 5;
constexpr unsigned kKickStorm = 500;
constexpr uint8_t kAllBits = 0xff;

void settle() {
  wait_until([] { return false; }, kSettleMs);
}

// Negotiated, not yet DRIVER_OK, nothing enabled.
void negotiate(Target& t) {
  t.device().start(t.features());
  t.device().select_queue(t.queue().index());
}

struct RingAddresses {
  uint64_t desc, avail, used;
};

RingAddresses good_rings(Target& t) {
  return {physical(t.queue().desc()), physical(t.queue().avail()), physical(t.queue().used())};
}

// Enables the queue with these and sends a good chain. The device may refuse at queue_enable or
// when it is kicked; what it may not do is serve the chain.
void try_rings(Target& t, const char* what, const RingAddresses& rings) {
  t.restart();
  negotiate(t);
  VirtioDevice& d = t.device();
  d.set_common64(VIRTIO_PCI_COMMON_Q_DESCLO, rings.desc);
  d.set_common64(VIRTIO_PCI_COMMON_Q_AVAILLO, rings.avail);
  d.set_common64(VIRTIO_PCI_COMMON_Q_USEDLO, rings.used);
  d.set_common16(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
  const bool enabled = d.common16(VIRTIO_PCI_COMMON_Q_ENABLE) == 1;
  d.driver_ok();
  t.lay_good_chain();
  send_head(t, 0);
  if (enabled && !d.needs_reset()) {
    if (!wait_until([&] { return d.needs_reset(); }, kSoonMs)) {
      print("rings on %s: %s\n", t.name(), what);
      check_failed(__FILE_NAME__, __LINE__, "rings that cannot be are refused");
    }
  }
  CHECK(!t.queue().has_used());
  t.must_still_work();
}

void try_ring_addresses(Target& t) {
  const RingAddresses good = good_rings(t);
  // The largest address at which a part of any ring is still in RAM.
  const uint64_t edge = ram_end() - 16;
  const uint64_t places[] = {ram_end(), edge, kMmioHole, uint64_t{1} << 52, ~uint64_t{15}};
  for (const uint64_t place : places) {
    try_rings(t, "desc", {place, good.avail, good.used});
    try_rings(t, "avail", {good.desc, place, good.used});
    try_rings(t, "used", {good.desc, good.avail, place});
  }
  // Section 2.7: 16, 2 and 4 bytes of alignment.
  try_rings(t, "desc misaligned", {good.desc + 8, good.avail, good.used});
  try_rings(t, "avail misaligned", {good.desc, good.avail + 1, good.used});
  try_rings(t, "used misaligned", {good.desc, good.avail, good.used + 2});
}

// Not a power of two, zero, or larger than the device said: the register keeps what it had, or the
// queue cannot be enabled, or the device needs a reset.
void try_sizes(Target& t) {
  negotiate(t);
  const uint16_t largest = t.device().common16(VIRTIO_PCI_COMMON_Q_SIZE);
  const uint16_t sizes[] = {0,
                            3,
                            100,
                            0xffff,
                            0x8001,
                            static_cast<uint16_t>(largest * 2),
                            static_cast<uint16_t>(largest + 1)};
  for (const uint16_t size : sizes) {
    negotiate(t);
    VirtioDevice& d = t.device();
    d.set_common16(VIRTIO_PCI_COMMON_Q_SIZE, size);
    const uint16_t kept = d.common16(VIRTIO_PCI_COMMON_Q_SIZE);
    const RingAddresses good = good_rings(t);
    d.set_common64(VIRTIO_PCI_COMMON_Q_DESCLO, good.desc);
    d.set_common64(VIRTIO_PCI_COMMON_Q_AVAILLO, good.avail);
    d.set_common64(VIRTIO_PCI_COMMON_Q_USEDLO, good.used);
    d.set_common16(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
    const bool enabled = d.common16(VIRTIO_PCI_COMMON_Q_ENABLE) == 1;
    d.driver_ok();
    t.queue().kick_always();
    settle();
    if (kept == size && enabled && !d.needs_reset()) {
      print("size %u on %s\n", size, t.name());
      check_failed(__FILE_NAME__, __LINE__, "a queue size that cannot be is refused");
    }
    t.must_still_work();
  }
}

void try_features(Target& t) {
  VirtioDevice& d = t.device();
  d.reset();
  const uint64_t offered = d.offered_features();
  const uint64_t wrong[] = {~uint64_t{0}, offered | uint64_t{1} << 63, offered | uint64_t{1} << 50,
                            offered | uint64_t{1} << 23};
  for (const uint64_t features : wrong) {
    if ((features & ~offered) == 0) continue;
    d.reset();
    d.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    d.add_status(VIRTIO_CONFIG_S_DRIVER);
    d.accept_features(features);
    d.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
    CHECK_EQ(d.status() & VIRTIO_CONFIG_S_FEATURES_OK, 0);
    d.driver_ok();  // all the same
    t.queue().kick_always();
    t.must_still_work();
  }
  // Changed once FEATURES_OK is set (section 3.1.1, step 5: not accepted any more).
  t.restart();
  d.accept_features(~uint64_t{0});
  t.good_request();
  t.must_still_work();
}

void try_statuses(Target& t) {
  VirtioDevice& d = t.device();
  const uint8_t statuses[] = {kAllBits,
                              VIRTIO_CONFIG_S_DRIVER_OK,
                              VIRTIO_CONFIG_S_FEATURES_OK,
                              VIRTIO_CONFIG_S_NEEDS_RESET,
                              VIRTIO_CONFIG_S_FAILED,
                              0x30};
  for (const uint8_t status : statuses) {
    d.reset();
    d.set_status(status);
    t.queue().kick_always();
    t.must_still_work();
    d.set_status(status);  // and while it runs
    t.queue().kick_always();
    settle();
    t.must_still_work();
  }
}

// Registers of a running queue that a driver may not touch.
void try_live_changes(Target& t) {
  VirtioDevice& d = t.device();
  t.restart();
  d.select_queue(t.queue().index());
  d.set_common64(VIRTIO_PCI_COMMON_Q_DESCLO, ~uint64_t{15});
  d.set_common64(VIRTIO_PCI_COMMON_Q_AVAILLO, kMmioHole);
  d.set_common64(VIRTIO_PCI_COMMON_Q_USEDLO, 8);
  d.set_common16(VIRTIO_PCI_COMMON_Q_SIZE, 0x8000);
  d.set_common16(VIRTIO_PCI_COMMON_Q_ENABLE, 0);
  d.set_common16(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
  d.set_common16(VIRTIO_PCI_COMMON_Q_ENABLE, 0xffff);
  t.lay_good_chain();
  send_head(t, 0);
  settle();
  t.must_still_work();
  // Queues that do not exist.
  const uint16_t beyond[] = {static_cast<uint16_t>(d.queue_count()), 64, 1024, 0xffff};
  for (const uint16_t queue : beyond) {
    negotiate(t);
    d.select_queue(queue);
    CHECK_EQ(d.common16(VIRTIO_PCI_COMMON_Q_SIZE), 0);
    d.set_common16(VIRTIO_PCI_COMMON_Q_SIZE, 16);
    d.set_common64(VIRTIO_PCI_COMMON_Q_DESCLO, ~uint64_t{15});
    d.set_common16(VIRTIO_PCI_COMMON_Q_MSIX, 0);
    d.set_common16(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
    d.set_common16(VIRTIO_PCI_COMMON_Q_RESET, 1);
    CHECK_EQ(d.common16(VIRTIO_PCI_COMMON_Q_ENABLE), 0);
    t.must_still_work();
  }
  // Queue reset without the feature, and of a queue that is off.
  t.restart();
  d.select_queue(t.queue().index());
  d.set_common16(VIRTIO_PCI_COMMON_Q_RESET, 1);
  d.set_common16(VIRTIO_PCI_COMMON_Q_RESET, 0xffff);
  settle();
  t.must_still_work();
  d.start(t.features() | feature(VIRTIO_F_RING_RESET));
  d.select_queue(t.queue().index());
  d.set_common16(VIRTIO_PCI_COMMON_Q_RESET, 1);
  CHECK_SOON(d.common16(VIRTIO_PCI_COMMON_Q_RESET) == 0);
  t.must_still_work();
}

}  // namespace

void setup(Target& target) {
  try_ring_addresses(target);
  try_sizes(target);
  try_features(target);
  try_statuses(target);
  try_live_changes(target);
}

void doorbells(Target& target) {
  VirtioDevice& d = target.device();
  // Rung before DRIVER_OK, a queue is not served (section 2.1.2); afterwards it is.
  negotiate(target);
  target.queue().reopen();
  target.lay_good_chain();
  send_head(target, 0);
  settle();
  CHECK(!target.queue().has_used());
  d.driver_ok();
  target.queue().kick_always();
  CHECK(target.observe(kSoonMs) == kCompleted);
  target.must_still_work();
  // After a reset, too.
  d.reset();
  target.lay_good_chain();
  send_head(target, 0);
  settle();
  CHECK(!d.needs_reset());
  target.must_still_work();
  // Queues that are off or not there, in any width and at any place of the notification area.
  target.restart();
  const uint32_t length = d.notify_length();
  const uint32_t step = length > 4096 ? length / 1024 : 2;
  for (uint32_t at = 0; at + 8 <= length; at += step) {
    mmio_write<uint16_t>(d.notify_address() + at, 0xffff);
    mmio_write<uint8_t>(d.notify_address() + at + 1, 0xff);
    mmio_write<uint32_t>(d.notify_address() + at, 0xffffffff);
    mmio_write<uint64_t>(d.notify_address() + at, ~uint64_t{0});
    mmio_read<uint32_t>(d.notify_address() + at);
  }
  settle();
  target.must_still_work();
  // Many, for nothing.
  target.restart();
  for (unsigned i = 0; i < kKickStorm; ++i) target.queue().kick_always();
  target.good_request();
  target.must_still_work();
}

}  // namespace hostile
