#include "devices/virtio/fake_transport.h"

#include <algorithm>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr uint64_t kTransportFeatures =
    uint64_t{1} << VIRTIO_F_VERSION_1 | uint64_t{1} << VIRTIO_F_RING_RESET |
    uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC | uint64_t{1} << VIRTIO_RING_F_EVENT_IDX;

uint64_t heap_bytes(const GuestMemory& memory, GuestAddr start) {
  const MemoryRegion region = memory.regions().front();
  LETHE_ASSERT(region.contains(start, 0));
  return region.size - (start.value - region.start.value);
}

}  // namespace

FakeTransport::FakeTransport(const GuestMemory& memory, VirtioDevice& device, GuestAddr heap_start)
    : x_memory(memory),
      x_device(&device),
      x_heap(memory, heap_start, heap_bytes(memory, heap_start)) {}

FakeTransport::~FakeTransport() { reset(); }

void FakeTransport::start(uint64_t wanted, uint16_t queue_size) {
  LETHE_ASSERT(!x_started);
  x_started = true;
  x_features = wanted & (x_device->device_features() | kTransportFeatures);
  x_queue_size = queue_size;
  {
    MutexLock lock(x_mutex);
    x_needs_reset = x_config_changes = 0;
    x_needs_reset_reason.clear();
  }
  x_queues.clear();
  const size_t queues = x_device->queue_sizes_max().size();
  for (size_t i = 0; i < queues; ++i) x_queues.push_back(std::make_unique<QueueState>());
  x_device->start(x_features, *this);
  for (uint16_t i = 0; i < queues; ++i) give_queue(i);
}

void FakeTransport::give_queue(uint16_t index) {
  QueueState& state = *x_queues[index];
  const uint16_t size = std::min(x_queue_size, x_device->queue_sizes_max()[index]);
  state.driver = std::make_unique<FakeDriver>(x_heap, size, x_features);
  state.keeper.position = {};
  start_queue(index);
}

void FakeTransport::start_queue(uint16_t index) {
  QueueState& state = *x_queues[index];
  auto queue = Queue::create(x_memory, state.driver->layout(), x_features, state.interrupt,
                             state.counters, &state.keeper);
  LETHE_ASSERT(queue.has_value());
  x_device->start_queue(index, std::move(*queue), state.kick);
}

void FakeTransport::freeze() {
  for (const auto& queue : x_queues) queue->keeper.keeps_chains.store(true);
  x_device->freeze();
  for (uint16_t i = 0; i < queues(); ++i) x_device->stop_queue(i);
  for (const auto& queue : x_queues) queue->keeper.keeps_chains.store(false);
}

void FakeTransport::thaw() {
  for (uint16_t i = 0; i < queues(); ++i) start_queue(i);
  for (const auto& queue : x_queues) queue->interrupt.signal();
}

std::vector<uint8_t> FakeTransport::save() {
  StateWriter to;
  x_device->save(to);
  return to.take();
}

void FakeTransport::leave() {
  if (x_device != nullptr) x_device->reset();
  x_device = nullptr;
}

Result<> FakeTransport::move_to(VirtioDevice& device, std::span<const uint8_t> state) {
  leave();
  x_device = &device;
  x_device->start(x_features, *this);
  StateReader from(state);
  return x_device->restore(from);
}

void FakeTransport::reset() {
  if (!x_started) return;
  if (x_device != nullptr) x_device->reset();
  x_started = false;
}

void FakeTransport::stop_queue(uint16_t index) { x_device->stop_queue(index); }
void FakeTransport::restart_queue(uint16_t index) { give_queue(index); }

void FakeTransport::kick(uint16_t index) {
  if (x_device->serves_kicks(index))
    x_device->kicked(index);
  else
    x_queues[index]->kick.signal();
}

void FakeTransport::kick_if_wanted(uint16_t index) {
  if (driver(index).kick_wanted()) kick(index);
}

std::optional<uint32_t> FakeTransport::request(uint16_t index, std::span<const FakeBuffer> buffers,
                                               FakeDriver::Table table,
                                               std::chrono::milliseconds patience) {
  LETHE_ASSERT(driver(index).outstanding() == 0);
  if (!driver(index).add(buffers, table)) return std::nullopt;
  kick_if_wanted(index);
  const auto used = driver(index).wait_used(interrupt(index), deadline_in(patience));
  if (!used) return std::nullopt;
  return used->written;
}

void FakeTransport::needs_reset(const char* reason) {
  MutexLock lock(x_mutex);
  ++x_needs_reset;
  x_needs_reset_reason = reason;
  x_changed.notify_all();
}

void FakeTransport::config_changed() {
  MutexLock lock(x_mutex);
  ++x_config_changes;
  x_changed.notify_all();
}

uint64_t FakeTransport::needs_reset_count() const {
  MutexLock lock(x_mutex);
  return x_needs_reset;
}
std::string FakeTransport::needs_reset_reason() const {
  MutexLock lock(x_mutex);
  return x_needs_reset_reason;
}
uint64_t FakeTransport::config_changes() const {
  MutexLock lock(x_mutex);
  return x_config_changes;
}

bool FakeTransport::wait_needs_reset(uint64_t count, std::chrono::milliseconds patience) {
  const Deadline deadline = deadline_in(patience);
  MutexLock lock(x_mutex);
  while (x_needs_reset < count) {
    if (!x_changed.wait_until(x_mutex, deadline)) return x_needs_reset >= count;
  }
  return true;
}

bool FakeTransport::wait_config_changes(uint64_t count, std::chrono::milliseconds patience) {
  const Deadline deadline = deadline_in(patience);
  MutexLock lock(x_mutex);
  while (x_config_changes < count) {
    if (!x_changed.wait_until(x_mutex, deadline)) return x_config_changes >= count;
  }
  return true;
}

}  // namespace lethe
