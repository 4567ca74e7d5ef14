#include "devices/virtio/fake_driver.h"

#include <poll.h>

#include <bit>
#include <cstring>
#include <utility>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr size_t kFlags = 0;  // positions in both rings, in uint16_t
constexpr size_t kIndex = 1;
constexpr size_t kEntries = 2;
constexpr size_t kUsedEntryWords = 4;

// SAFETY: ring words are 2-byte aligned and shared with the device's thread.
uint16_t load(const uint16_t& word, std::memory_order order) {
  return std::atomic_ref<uint16_t>(const_cast<uint16_t&>(word)).load(order);
}
void store(uint16_t& word, uint16_t value, std::memory_order order) {
  std::atomic_ref<uint16_t>(word).store(value, order);
}

template <typename T>
T* pointer_to(const GuestMemory& memory, GuestAddr address, uint64_t bytes) {
  const auto slice = memory.slice(address, bytes);
  LETHE_ASSERT(slice.has_value());
  // SAFETY: the heap aligned the address, and host addresses are congruent to it.
  return reinterpret_cast<T*>(slice->data);
}

}  // namespace

GuestHeap::GuestHeap(const GuestMemory& memory, GuestAddr start, uint64_t size)
    : x_memory(memory), x_next(start.value), x_end(start.value + size) {
  LETHE_ASSERT(memory.slice(start, size).has_value());
}

GuestAddr GuestHeap::alloc(uint64_t bytes, uint64_t alignment) {
  LETHE_ASSERT(std::has_single_bit(alignment));
  const uint64_t at = (x_next + alignment - 1) & ~(alignment - 1);
  LETHE_ASSERT(at <= x_end && bytes <= x_end - at);
  x_next = at + bytes;
  return GuestAddr{at};
}

GuestAddr GuestHeap::put(std::span<const uint8_t> content, uint64_t alignment) {
  const GuestAddr at = alloc(content.size(), alignment);
  LETHE_ASSERT(x_memory.write(at, content));
  return at;
}

FakeInterrupt::FakeInterrupt() : x_event(EventFd::create().value()) {}

void FakeInterrupt::signal() {
  // SAFETY: store-load order with wait_until(), by sequential consistency: the count is raised,
  // then the sleeper looked for; it says that it sleeps, then looks at the count.
  x_count.fetch_add(1);
  if (x_sleeping.load()) x_event.signal();
}

bool FakeInterrupt::wait_until(Deadline deadline) {
  for (;;) {
    x_sleeping.store(true);
    const uint64_t count = x_count.load();
    const auto left = deadline - std::chrono::steady_clock::now();
    if (count != x_seen || left <= left.zero()) {
      x_sleeping.store(false);
      return std::exchange(x_seen, count) != count;
    }
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
    const timespec timeout{.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
    pollfd poll_fd{.fd = x_event.fd(), .events = POLLIN, .revents = 0};
    (void)::ppoll(&poll_fd, 1, &timeout, nullptr);
    (void)x_event.take();  // perhaps of a signal that was seen without sleeping: then once more
  }
}

FakeDriver::FakeDriver(GuestHeap& heap, uint16_t size, uint64_t features)
    : x_size(size),
      x_event_idx((features >> VIRTIO_RING_F_EVENT_IDX & 1) != 0),
      x_next(size),
      x_outstanding(size),
      x_free_count(size) {
  LETHE_ASSERT(std::has_single_bit(size) && size <= kQueueSizeMax);
  const uint64_t desc_bytes = sizeof(vring_desc) * size;
  const uint64_t avail_bytes = 6 + sizeof(uint16_t) * size;
  const uint64_t used_bytes = 6 + sizeof(vring_used_elem) * size;
  x_layout = {.size = size,
              .desc = heap.alloc(desc_bytes, 16),
              .driver = heap.alloc(avail_bytes, 2),
              .device = heap.alloc(used_bytes, 4)};
  x_indirect = heap.alloc(desc_bytes * size, 16);
  const GuestMemory& memory = heap.memory();
  x_desc = pointer_to<vring_desc>(memory, x_layout.desc, desc_bytes);
  x_avail = pointer_to<uint16_t>(memory, x_layout.driver, avail_bytes);
  x_used = pointer_to<uint16_t>(memory, x_layout.device, used_bytes);
  x_indirect_entries = pointer_to<vring_desc>(memory, x_indirect, desc_bytes * size);
  std::memset(x_avail, 0, avail_bytes);
  std::memset(x_used, 0, used_bytes);
  for (uint16_t i = 0; i < size; ++i) x_next[i] = static_cast<uint16_t>(i + 1);
}

vring_desc* FakeDriver::indirect_entries(uint16_t index) {
  return x_indirect_entries + size_t{index} * x_size;
}

GuestAddr FakeDriver::indirect_table(uint16_t index) const {
  return GuestAddr{x_indirect.value + sizeof(vring_desc) * index * x_size};
}

uint16_t FakeDriver::take_free() {
  const uint16_t index = x_free;
  x_free = x_next[index];
  --x_free_count;
  return index;
}

// The chain is still linked through x_next: hang it in front of the free list.
void FakeDriver::give_back(uint16_t head) {
  uint16_t last = head;
  for (uint16_t i = 1; i < x_outstanding[head]; ++i) last = x_next[last];
  x_next[last] = x_free;
  x_free = head;
  x_free_count = static_cast<uint16_t>(x_free_count + x_outstanding[head]);
  x_outstanding[head] = 0;
  --x_outstanding_count;
}

vring_desc FakeDriver::describe(const FakeBuffer& buffer) {
  return {.addr = buffer.address.value,
          .len = buffer.size,
          .flags = static_cast<uint16_t>(buffer.writable ? VRING_DESC_F_WRITE : 0),
          .next = 0};
}

std::optional<uint16_t> FakeDriver::prepare(std::span<const FakeBuffer> buffers, Table table) {
  LETHE_ASSERT(!buffers.empty() && buffers.size() <= x_size);
  const size_t direct = table == Table::kDirect  ? buffers.size()
                        : table == Table::kMixed ? buffers.size() / 2
                                                 : 0;
  const size_t needed = direct + (direct < buffers.size() ? 1 : 0);
  if (needed > x_free_count) return std::nullopt;
  const uint16_t head = x_free;
  uint16_t at = head;
  for (size_t i = 0; i < needed; ++i) {
    at = take_free();
    if (i < direct) {
      x_desc[at] = describe(buffers[i]);
    } else {
      vring_desc* const entries = indirect_entries(at);
      const auto rest = static_cast<uint16_t>(buffers.size() - direct);
      for (uint16_t j = 0; j < rest; ++j) {
        entries[j] = describe(buffers[direct + j]);
        if (j + 1 == rest) break;
        entries[j].flags |= VRING_DESC_F_NEXT;
        entries[j].next = static_cast<uint16_t>(j + 1);
      }
      x_desc[at] = {.addr = indirect_table(at).value,
                    .len = static_cast<uint32_t>(sizeof(vring_desc) * rest),
                    .flags = VRING_DESC_F_INDIRECT,
                    .next = 0};
    }
    if (i + 1 == needed) break;
    x_desc[at].flags |= VRING_DESC_F_NEXT;
    x_desc[at].next = x_next[at];
  }
  x_outstanding[head] = static_cast<uint16_t>(needed);
  ++x_outstanding_count;
  raw_avail_entry(x_avail_index++, head);
  return head;
}

void FakeDriver::publish() {
  // SAFETY: release: the device that sees the index sees the entries and descriptors (2.7.13.3).
  store(x_avail[kIndex], x_avail_index, std::memory_order_release);
  x_published_index = x_avail_index;
}

std::optional<uint16_t> FakeDriver::add(std::span<const FakeBuffer> buffers, Table table) {
  const auto head = prepare(buffers, table);
  if (head) publish();
  return head;
}

bool FakeDriver::kick_wanted() {
  const uint16_t from = x_kicked_index;
  const uint16_t to = x_published_index;
  x_kicked_index = to;
  if (from == to) return false;
  // SAFETY: store-load order: idx was stored, the device's wish is loaded; Queue::enable_kicks()
  // has the other fence.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!x_event_idx)
    return (load(x_used[kFlags], std::memory_order_relaxed) & VRING_USED_F_NO_NOTIFY) == 0;
  return static_cast<uint16_t>(to - raw_avail_event() - 1) < static_cast<uint16_t>(to - from);
}

std::optional<FakeDriver::Used> FakeDriver::poll_used() {
  // SAFETY: acquire pairs with the device's release: the entry and the buffers are visible.
  if (load(x_used[kIndex], std::memory_order_acquire) == x_used_index) return std::nullopt;
  const vring_used_elem entry = raw_used_entry(x_used_index);
  LETHE_ASSERT(entry.id < x_size && x_outstanding[entry.id] > 0);
  ++x_used_index;
  const auto head = static_cast<uint16_t>(entry.id);
  give_back(head);
  return Used{.head = head, .written = entry.len};
}

bool FakeDriver::enable_interrupts() {
  if (x_event_idx) {
    raw_used_event(x_used_index);
  } else {
    raw_avail_flags(0);
  }
  // SAFETY: store-load order, against the fence in Queue::interrupt_if_needed().
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return raw_used_index() != x_used_index;
}

void FakeDriver::disable_interrupts() {
  // With EVENT_IDX: an index that has just been passed (2.7.7.1 leaves the flag at 0).
  if (x_event_idx) {
    raw_used_event(static_cast<uint16_t>(x_used_index - 1));
  } else {
    raw_avail_flags(VRING_AVAIL_F_NO_INTERRUPT);
  }
}

std::optional<FakeDriver::Used> FakeDriver::wait_used(FakeInterrupt& interrupt, Deadline deadline) {
  for (;;) {
    if (const auto used = poll_used()) return used;
    if (enable_interrupts()) continue;
    if (!interrupt.wait_until(deadline)) return std::nullopt;
  }
}

void FakeDriver::raw_descriptor(uint16_t index, const vring_desc& desc) { x_desc[index] = desc; }
void FakeDriver::raw_avail_entry(uint16_t position, uint16_t head) {
  store(x_avail[kEntries + (position & (x_size - 1))], head, std::memory_order_relaxed);
}
void FakeDriver::raw_avail_index(uint16_t index) {
  store(x_avail[kIndex], index, std::memory_order_release);
}
void FakeDriver::raw_avail_flags(uint16_t flags) {
  store(x_avail[kFlags], flags, std::memory_order_relaxed);
}
void FakeDriver::raw_used_event(uint16_t event) {
  store(x_avail[kEntries + x_size], event, std::memory_order_relaxed);
}
uint16_t FakeDriver::raw_used_flags() const {
  return load(x_used[kFlags], std::memory_order_relaxed);
}
uint16_t FakeDriver::raw_used_index() const {
  return load(x_used[kIndex], std::memory_order_acquire);
}
vring_used_elem FakeDriver::raw_used_entry(uint16_t position) const {
  vring_used_elem entry;
  std::memcpy(&entry, x_used + kEntries + kUsedEntryWords * (position & (x_size - 1)),
              sizeof entry);
  return entry;
}
uint16_t FakeDriver::raw_avail_event() const {
  return load(x_used[kEntries + kUsedEntryWords * x_size], std::memory_order_relaxed);
}
void FakeDriver::raw_publish(uint16_t head) {
  raw_avail_entry(x_avail_index++, head);
  publish();
}

}  // namespace lethe
