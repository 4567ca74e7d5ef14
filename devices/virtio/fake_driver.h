// For tests and benches: the driver side of one split virtqueue, played in this process against the
// same guest memory a device sees. It keeps the rules of virtio 1.2, 2.7 unless it is told to break
// them through the raw_* functions.
//
// Threading: one thread plays the driver; the device may run on another.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/event_fd.h"
#include "devices/interrupt.h"
#include "devices/virtio/queue.h"
#include "memory/guest_addr.h"
#include "memory/guest_memory.h"

namespace lethe {

using Deadline = std::chrono::steady_clock::time_point;
inline Deadline deadline_in(std::chrono::milliseconds time) {
  return std::chrono::steady_clock::now() + time;
}

// Gives out guest memory, front to back; nothing is taken back.
class GuestHeap {
 public:
  // The heap is [start, start + size) of `memory`, which must lie in one region.
  GuestHeap(const GuestMemory& memory, GuestAddr start, uint64_t size);
  // `alignment` is a power of two. Running out is a programmer error.
  GuestAddr alloc(uint64_t bytes, uint64_t alignment = 16);
  // The same, filled with `content`.
  GuestAddr put(std::span<const uint8_t> content, uint64_t alignment = 16);
  [[nodiscard]] const GuestMemory& memory() const { return x_memory; }

 private:
  const GuestMemory& x_memory;
  uint64_t x_next;
  uint64_t x_end;
};

// An interrupt that counts, and that a test can wait for: asleep, or, as a vCPU that is running,
// awake, by looking at the count. The sender pays for a wake-up only if there is one to be done.
class FakeInterrupt : public Interrupt {
 public:
  FakeInterrupt();
  void signal() override;
  [[nodiscard]] uint64_t count() const { return x_count.load(); }
  // Waits for a signal since the last wait; false once the deadline has passed.
  [[nodiscard]] bool wait_until(Deadline deadline);

 private:
  EventFd x_event;      // signalled only for a sleeper
  uint64_t x_seen = 0;  // the count when wait_until() last returned true
  alignas(128) std::atomic<uint64_t> x_count{0};
  std::atomic<bool> x_sleeping{false};
};

// One descriptor's worth of guest memory.
struct FakeBuffer {
  GuestAddr address;
  uint32_t size = 0;  // bytes
  bool writable = false;
};

class FakeDriver {
 public:
  enum class Table : uint8_t {
    kDirect,
    kIndirect,
    kMixed,  // the first half direct, then an indirect table with the rest (2.7.5.3.2 allows it)
  };
  struct Used {
    uint16_t head = 0;
    uint32_t written = 0;
  };

  // Takes the rings, and an indirect table for each descriptor, from `heap`. `features` says
  // whether EVENT_IDX is negotiated. `size` as the spec has it, up to kQueueSizeMax.
  FakeDriver(GuestHeap& heap, uint16_t size, uint64_t features);

  [[nodiscard]] QueueLayout layout() const { return x_layout; }

  // Makes a chain available and returns its head; nothing if too few descriptors are free. Readable
  // buffers first.
  std::optional<uint16_t> add(std::span<const FakeBuffer> buffers, Table table = Table::kDirect);
  // The same in two steps, to publish several chains by one store of the index.
  std::optional<uint16_t> prepare(std::span<const FakeBuffer> buffers, Table table);
  void publish();
  // Whether the device wants a kick for what was published since the last call (2.7.13.4.1).
  [[nodiscard]] bool kick_wanted();

  // The next used chain, whose descriptors are free again. A used element that names no chain of
  // ours is a broken device: an assertion fails.
  std::optional<Used> poll_used();
  // Tells the device that interrupts are (not) wanted. enable returns true if there is something to
  // poll already: no interrupt will come for that.
  [[nodiscard]] bool enable_interrupts();
  void disable_interrupts();
  // Polls, and sleeps on `interrupt` in between; nothing once the deadline has passed.
  std::optional<Used> wait_used(FakeInterrupt& interrupt, Deadline deadline);

  [[nodiscard]] uint16_t free_descriptors() const { return x_free_count; }
  [[nodiscard]] uint16_t outstanding() const { return x_outstanding_count; }

  // What a malformed driver writes, and what a suspicious one reads. Indices of rings wrap.
  void raw_descriptor(uint16_t index, const vring_desc& desc);
  void raw_avail_entry(uint16_t position, uint16_t head);
  void raw_avail_index(uint16_t index);
  void raw_avail_flags(uint16_t flags);
  void raw_used_event(uint16_t event);
  [[nodiscard]] uint16_t raw_used_flags() const;
  [[nodiscard]] uint16_t raw_used_index() const;
  [[nodiscard]] vring_used_elem raw_used_entry(uint16_t position) const;
  [[nodiscard]] uint16_t raw_avail_event() const;
  // Puts `head` at the end of the available ring and publishes it, whatever it is.
  void raw_publish(uint16_t head);
  // Where the indirect table that belongs to descriptor `index` lies: size() entries.
  [[nodiscard]] GuestAddr indirect_table(uint16_t index) const;

 private:
  vring_desc* indirect_entries(uint16_t index);
  uint16_t take_free();
  void give_back(uint16_t head);
  static vring_desc describe(const FakeBuffer& buffer);

  const uint16_t x_size;
  const bool x_event_idx;
  QueueLayout x_layout;
  GuestAddr x_indirect;
  vring_desc* x_desc = nullptr;
  vring_desc* x_indirect_entries = nullptr;  // x_size tables of x_size entries
  uint16_t* x_avail = nullptr;
  uint16_t* x_used = nullptr;
  // The driver's own copies of what links where: a device can't spoil them (nor can raw_*).
  std::vector<uint16_t> x_next;
  std::vector<uint16_t> x_outstanding;  // by head: descriptors it holds in the main table, or 0
  uint16_t x_free = 0;
  uint16_t x_free_count = 0;
  uint16_t x_outstanding_count = 0;
  uint16_t x_avail_index = 0;      // prepared
  uint16_t x_published_index = 0;  // published
  uint16_t x_kicked_index = 0;     // published when kick_wanted() was last asked
  uint16_t x_used_index = 0;       // polled
};

}  // namespace lethe
