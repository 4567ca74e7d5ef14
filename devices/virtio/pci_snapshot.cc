// VirtioPciTransport's part of snapshots: queues that stop and go on, and everything a driver has
// set, written down and read back. What is read is checked as if the guest had written it.
#include <algorithm>
#include <bit>
#include <utility>

#include "base/assert.h"
#include "devices/virtio/pci_transport.h"

namespace lethe {
namespace {

constexpr uint32_t kVersion = 1;
constexpr uint8_t kStatusBits = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                                VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK |
                                VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET;
constexpr uint8_t kIsrBits = 1 | VIRTIO_PCI_ISR_CONFIG;

void save_position(StateWriter& to, const QueuePosition& position) {
  to.number(position.next_avail);
  to.number(position.next_used);
  to.boolean(position.broken);
  to.number(static_cast<uint16_t>(position.unfinished.size()));
  for (const uint16_t head : position.unfinished) to.number(head);
}

QueuePosition restore_position(StateReader& from) {
  QueuePosition position;
  position.next_avail = from.number<uint16_t>();
  position.next_used = from.number<uint16_t>();
  position.broken = from.boolean();
  const auto count = from.number<uint16_t>();
  for (uint16_t i = 0; i < count && from.ok(); ++i)
    position.unfinished.push_back(from.number<uint16_t>());
  return position;
}

}  // namespace

void VirtioPciTransport::freeze() {
  MutexLock lock(x_mutex);
  const bool again = std::exchange(x_frozen, true);
  if (!x_started) return;
  if (again) return x_device->freeze();  // its queues are stopped
  // Before the first queue stops: a device may let go of one queue's chains when another one stops.
  for (const auto& line : x_lines) line->keeper.keeps_chains.store(true, std::memory_order_release);
  x_device->freeze();
  for (uint16_t i = 0; i < x_queues.size(); ++i)
    if (x_queues[i].live) x_device->stop_queue(i);
  for (const auto& line : x_lines)
    line->keeper.keeps_chains.store(false, std::memory_order_release);
}

void VirtioPciTransport::start_kept_queue(uint16_t index) {
  auto queue = make_queue(index);
  if (queue) return start_queue(index, std::move(*queue));
  // A file said so: the rings of a queue that was live lie in memory.
  x_queues[index].live = false;
  needs_reset(queue.error().text.c_str());
}

// The queues go on where they stopped.
void VirtioPciTransport::go_on() {
  x_frozen = false;
  for (uint16_t i = 0; i < x_queues.size(); ++i)
    if (x_queues[i].live) start_kept_queue(i);
  // What was completed last may not have been followed by its interrupt. One for nothing does no
  // harm.
  for (uint16_t i = 0; i < x_queues.size(); ++i)
    if (x_queues[i].live) x_lines[i]->signal();
  if ((status() & VIRTIO_CONFIG_S_DRIVER_OK) != 0) config_interrupt();
}

void VirtioPciTransport::thaw() {
  MutexLock lock(x_mutex);
  LETHE_ASSERT(x_frozen);
  go_on();
}

// --- written down

void VirtioPciTransport::save_registers(StateWriter& to) const {
  to.number(status());
  to.boolean(x_started);
  to.number(x_driver_features);
  to.number(x_device_feature_select);
  to.number(x_driver_feature_select);
  to.number(x_isr.load(std::memory_order_acquire));
  to.number(x_config_vector.load(std::memory_order_acquire));
  to.number(x_config_generation);
  to.number(x_queue_select);
  for (size_t i = 0; i < x_queues.size(); ++i) {
    const QueueRegisters& queue = x_queues[i];
    to.number(queue.size);
    to.boolean(queue.enabled);
    to.boolean(queue.live);
    to.number(queue.desc);
    to.number(queue.driver);
    to.number(queue.device);
    to.number(x_lines[i]->vector.load(std::memory_order_acquire));
    save_position(to, x_lines[i]->keeper.position);
  }
}

Result<> VirtioPciTransport::can_save() {
  MutexLock lock(x_mutex);
  LETHE_ASSERT(x_frozen);
  return x_device->can_save();
}

void VirtioPciTransport::save_device(StateWriter& to) {
  LETHE_ASSERT(x_frozen);
  to.begin_section("transport", kVersion);
  to.number(x_device->virtio_id());
  to.number(queues());
  save_registers(to);
  to.end_section();
  to.begin_section("device", kVersion);
  x_device->save(to);
  to.end_section();
}

// --- read back

// Everything that decides whether the device runs.
void VirtioPciTransport::restore_status(StateReader& from) {
  const auto status = from.number<uint8_t>();
  const bool started = from.boolean();
  const auto features = from.number<uint64_t>();
  const bool live = (status & VIRTIO_CONFIG_S_DRIVER_OK) != 0;
  const bool agreed = (status & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
  if ((status & ~kStatusBits) != 0 || (live && !agreed) || (started && !live))
    return from.fail(fmt::format("a device can't have the status {:#x}", status));
  if (agreed && !acceptable_features(features))
    return from.fail(fmt::format("the features {:#x} are not on offer here, which are {:#x}",
                                 features, offered_features()));
  x_driver_features = features;
  x_started = started && from.ok();
  x_status.store(status, std::memory_order_release);
}

void VirtioPciTransport::restore_queue(StateReader& from, uint16_t index) {
  QueueRegisters& queue = x_queues[index];
  QueueLine& line = *x_lines[index];
  const auto size = from.number<uint16_t>();
  queue.enabled = from.boolean();
  const bool live = from.boolean();
  queue.desc = from.number<uint64_t>();
  queue.driver = from.number<uint64_t>();
  queue.device = from.number<uint64_t>();
  const auto vector = from.number<uint16_t>();
  line.keeper.position = restore_position(from);
  if (!from.ok()) return;
  if (!std::has_single_bit(size) || size > x_device->queue_sizes_max()[index] ||
      valid_vector(vector) != vector || (live && (!queue.enabled || !x_started)))
    return from.fail(fmt::format("the registers of queue {} are wrong", index));
  if (const auto good = check_position(line.keeper.position, size); !good)
    return from.fail(fmt::format("queue {}: {}", index, good.error().text));
  queue.size = size;
  line.vector.store(vector, std::memory_order_release);
  // The doorbell is bound when the queue starts.
  queue.live = live;
}

void VirtioPciTransport::restore_registers(StateReader& from) {
  restore_status(from);
  x_device_feature_select = from.number<uint32_t>();
  x_driver_feature_select = from.number<uint32_t>();
  const auto isr = from.number<uint8_t>();
  const auto config_vector = from.number<uint16_t>();
  x_config_generation = from.number<uint8_t>();
  x_queue_select = from.number<uint16_t>();
  if (!from.ok()) return;
  if ((isr & ~kIsrBits) != 0 || valid_vector(config_vector) != config_vector)
    return from.fail("the interrupt registers are wrong");
  x_isr.store(isr, std::memory_order_release);
  x_config_vector.store(config_vector, std::memory_order_release);
  // Whoever is about to compare generations sees another one, and reads again.
  x_config_changed.store(true, std::memory_order_release);
  for (uint16_t i = 0; i < x_queues.size() && from.ok(); ++i) restore_queue(from, i);
}

void VirtioPciTransport::restore_device(StateReader& from) {
  LETHE_ASSERT(!x_frozen && !x_started && status() == 0);
  from.begin_section("transport", kVersion);
  if (from.number<uint16_t>() != x_device->virtio_id() || from.number<uint16_t>() != queues())
    from.fail("it is of another device");
  restore_registers(from);
  from.end_section();
  // Half a device is none: what was not started is not reset.
  if (!from.ok()) {
    x_started = false;
    return;
  }
  if (x_started) x_device->start(x_driver_features, *this);
  from.begin_section("device", kVersion);
  if (from.ok())
    if (const auto restored = x_device->restore(from); !restored) from.fail(restored.error().text);
  from.end_section();
  if (from.ok()) go_on();
}

}  // namespace lethe
