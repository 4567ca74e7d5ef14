// The device side of a split virtqueue (virtio 1.2, 2.7), and the chains popped from it.
//
// Everything in the rings is the guest's word: it is copied, checked once and used once. A rule
// broken in the ring makes the queue broken for good (`broken()`): nothing is popped or completed
// any more until the device is reset, and the device says DEVICE_NEEDS_RESET (2.1.1).
//
// Threading: one thread owns a queue. No allocation after construction, except for chains longer
// than kInlineSlices; the storage of those up to kKeptSlices is kept for the next one.
#pragma once

#define VIRTIO_RING_NO_LEGACY  // its inline functions are C only
#include <linux/virtio_ring.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/result.h"
#include "devices/interrupt.h"
#include "memory/guest_memory.h"

namespace lethe {

inline constexpr uint16_t kQueueSizeMax = 1024;                // ours; the spec allows 32768 (2.7)
inline constexpr uint64_t kChainBytesMax = uint64_t{1} << 32;  // 2.7.5: no chain is longer in total

struct QueueLayout {
  uint16_t size = 0;  // entries, a power of two up to kQueueSizeMax
  GuestAddr desc;     // descriptor table, 16-byte aligned
  GuestAddr driver;   // available ring, 2-byte aligned
  GuestAddr device;   // used ring, 4-byte aligned
};

// What a queue did and refused. Its owner writes it, any thread may read it; one queue each.
struct alignas(128) QueueCounters {
  std::atomic<uint64_t> chains{0};      // popped
  std::atomic<uint64_t> interrupts{0};  // sent
  std::atomic<uint64_t> rejected{0};    // rules broken by the driver; the queue is broken after one
};

// Where a queue stands: what the rings do not say. A queue that ends leaves it behind, the next one
// on the same rings goes on from there (freeze, snapshots).
struct QueuePosition {
  uint16_t next_avail = 0;           // of the available ring: what is popped next
  uint16_t next_used = 0;            // of the used ring: where the next element goes
  bool broken = false;               // for good: the device needs a reset
  std::vector<uint16_t> unfinished;  // heads popped and not completed: they are popped again first

  bool operator==(const QueuePosition&) const = default;
};
// What could not be a queue's of this size (a file says so): kConfig.
[[nodiscard]] Result<> check_position(const QueuePosition& position, uint16_t size);

// Who outlives a queue, and keeps its position for the next one.
struct QueueKeeper {
  // From now on chains that are dropped are not completed but kept for the next queue. Any thread.
  std::atomic<bool> keeps_chains{false};
  QueuePosition position;  // not while there is a queue
};

class Queue;

// A descriptor chain: what the device may read, then what it may write (2.7.4.2). Move-only and
// completed exactly once: by complete(), or, if it is dropped, by the destructor with 0 bytes
// written, so that the driver always gets its buffers back; in a device that is being frozen a
// dropped chain waits for the next queue instead. Chains are completed in any order.
// Descriptors of length 0, which the spec does not forbid, are not among the slices.
class Chain {
 public:
  Chain(Chain&& other) noexcept
      : x_queue(std::exchange(other.x_queue, nullptr)), x_head(other.x_head) {}
  Chain& operator=(Chain&& other) noexcept {
    if (this != &other) {
      if (x_queue != nullptr) drop();
      x_queue = std::exchange(other.x_queue, nullptr);
      x_head = other.x_head;
    }
    return *this;
  }
  ~Chain() {
    if (x_queue != nullptr) drop();
  }

  // All of these: not after complete() or a move.
  [[nodiscard]] uint16_t head() const { return x_head; }
  [[nodiscard]] std::span<const IoSlice> readable() const;
  [[nodiscard]] std::span<const IoSlice> writable() const;
  [[nodiscard]] uint64_t readable_bytes() const;
  [[nodiscard]] uint64_t writable_bytes() const;

  // Copies out of the readable part from byte `offset`; returns the bytes copied (less at its end).
  size_t copy_from_readable(uint64_t offset, std::span<uint8_t> to) const;
  // Copies the T that the readable part starts with; false if that is shorter.
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  [[nodiscard]] bool copy_front(T& to) const {
    // SAFETY: T is trivially copyable, and the span covers exactly the object.
    const std::span<uint8_t> bytes{reinterpret_cast<uint8_t*>(&to), sizeof to};
    const std::span<const IoSlice> slices = readable();
    if (slices.empty() || slices.front().size < sizeof to) [[unlikely]]
      return copy_from_readable(0, bytes) == sizeof to;
    std::memcpy(bytes.data(), slices.front().data, sizeof to);
    // SAFETY: the empty asm makes the copy opaque, so the compiler can't read guest memory a second
    // time in its place.
    asm("" : "+m"(to));
    return true;
  }
  // Copies into the writable part at byte `offset`; returns the bytes copied.
  size_t copy_to_writable(uint64_t offset, std::span<const uint8_t> from) const;

  // Puts the chain on the used ring; `written` is the count of bytes written from the start of the
  // writable part (2.7.8.2), at most writable_bytes() (else a programmer error). The chain is empty
  // afterwards. Call Queue::interrupt_if_needed() after a batch of these.
  void complete(uint32_t written);

 private:
  friend class Queue;
  Chain(Queue& queue, uint16_t head) : x_queue(&queue), x_head(head) {}
  void drop();
  Queue* x_queue = nullptr;
  uint16_t x_head = 0;
};

class alignas(128) Queue {
 public:
  static constexpr size_t kInlineSlices = 8;
  // Network frames (Linux: 19 slices at most) stay below this. Longer chains pay for an allocation,
  // which their bytes dwarf, so that a queue keeps 512 bytes a head and not 16 KiB.
  static constexpr uint16_t kKeptSlices = 32;

  // `features`: the negotiated bits; VIRTIO_RING_F_INDIRECT_DESC and VIRTIO_RING_F_EVENT_IDX count
  // here. Fails (kHost, text for the log) when the layout breaks a rule of 2.7: size no power of
  // two or above kQueueSizeMax, a ring misaligned or not wholly in one region of memory.
  // `memory`, `interrupt`, `counters` and `keeper` must outlive the queue. It goes on from the
  // keeper's position (a new one without a keeper), and leaves its own there when it ends. Fails
  // also for a position that check_position() refuses.
  [[nodiscard]] static Result<std::unique_ptr<Queue>> create(
      const GuestMemory& memory, const QueueLayout& layout, uint64_t features, Interrupt& interrupt,
      QueueCounters& counters, QueueKeeper* keeper = nullptr);
  // No chain may be alive.
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // The next available chain. Nothing: the ring is empty, or the queue is broken (look).
  [[nodiscard]] std::optional<Chain> pop() { return pop(*map()); }
  // For several in a row, under one guard.
  [[nodiscard]] GuestMemory::MapGuard map() const { return x_memory.map(); }
  [[nodiscard]] std::optional<Chain> pop(const MemoryMap& map);
  // Has the processor fetch what the next pop()s and interrupt_if_needed() will read, so that it
  // comes while the caller does something else. Never needed; may find the queue broken.
  void look_ahead();
  [[nodiscard]] bool broken() const { return x_broken; }
  // Why, for the log; empty if not broken.
  [[nodiscard]] const char* broken_reason() const { return x_broken_reason; }

  // Asks the driver (not) to kick. enable returns true if chains became available meanwhile: the
  // caller must pop again (2.7.10: full fence between setting and looking). A new queue wants
  // kicks.
  void disable_kicks();
  [[nodiscard]] bool enable_kicks();

  // Interrupts the driver if it wants one for what was completed since the last call (2.7.7).
  void interrupt_if_needed();

  [[nodiscard]] uint16_t size() const { return x_size; }
  [[nodiscard]] uint16_t in_flight() const { return x_in_flight; }
  // Of chains longer than kInlineSlices; in flight, and kept.
  [[nodiscard]] size_t long_slice_bytes() const;

 private:
  friend class Chain;

  // A chain in flight. Trivial, so that the array of them costs no memory until it is used. All of
  // a chain of three slices, as a block read has, is in one cache line.
  struct alignas(64) Slot {
    uint64_t readable_bytes : 48;
    uint64_t readable_count : 16;
    uint64_t writable_bytes : 48;
    uint64_t count : 16;
    std::array<IoSlice, kInlineSlices> slices;
  };
  // Where chains longer than kInlineSlices have all their slices.
  struct LongSlices {
    std::unique_ptr<IoSlice[]> slices;
    uint16_t capacity = 0;
  };
  struct Walk;

  Queue(const GuestMemory& memory, uint64_t features, Interrupt& interrupt,
        QueueCounters& counters);

  void go_on_from(QueueKeeper& keeper);
  std::optional<Chain> pop_kept(const MemoryMap& map);
  void drop(uint16_t head);
  bool walk(const MemoryMap& map, uint16_t head);
  bool enter_indirect(Walk& walk, const vring_desc& desc);
  bool take_buffer(Walk& walk, const vring_desc& desc);
  IoSlice& next_slice(uint16_t head, uint16_t used);
  IoSlice& next_long_slice(uint16_t head, uint16_t used);
  bool fail(const char* reason);
  bool fetch_avail_index();
  void prefetch_descriptors(uint16_t count) const;
  void complete(uint16_t head, uint32_t written);
  [[nodiscard]] const IoSlice* slices(uint16_t head) const {
    const Slot& slot = x_slots[head];
    return slot.count <= kInlineSlices ? slot.slices.data() : x_long_slices[head].slices.get();
  }

  const GuestMemory& x_memory;
  Interrupt& x_interrupt;
  QueueCounters& x_counters;
  QueueKeeper* x_keeper = nullptr;  // none in tests
  const bool x_indirect;
  const bool x_event_idx;

  // The rings' places in this process, looked up once: RAM stays mapped.
  const uint8_t* x_desc = nullptr;  // vring_desc[size]
  uint16_t* x_avail = nullptr;      // flags, idx, ring[size], used_event
  uint16_t* x_used = nullptr;       // flags, idx, vring_used_elem[size], avail_event

  uint16_t x_size = 0;
  // x_size - 1. Also keeps x_in_flight apart: a load of 4 bytes for a mask, right after the store
  // of x_in_flight among them, would wait for that store.
  uint16_t x_mask = 0;
  uint16_t x_in_flight = 0;
  uint16_t x_next_avail = 0;   // of the available ring: what pop() takes next
  uint16_t x_avail_index = 0;  // how far the driver was when we last looked
  uint16_t x_used_index = 0;
  uint16_t x_signalled_used = 0;  // x_used_index at the last interrupt_if_needed()
  uint32_t x_completed = 0;       // chains completed since then
  bool x_broken = false;
  bool x_look_closer = false;  // complete(): it is broken, or had chains longer than kKeptSlices
  uint16_t x_kept_left = 0;    // heads at the end of x_kept: popped before everything else
  const char* x_broken_reason = "";
  std::unique_ptr<Slot[]> x_slots;              // by head
  std::unique_ptr<LongSlices[]> x_long_slices;  // by head
  std::unique_ptr<bool[]> x_head_in_flight;     // by head; those of x_kept and x_dropped as well
  std::vector<uint16_t> x_kept;                 // heads that the queue before this one left
  std::vector<uint16_t> x_dropped;              // heads that the next one gets
};

inline void Chain::drop() { std::exchange(x_queue, nullptr)->drop(x_head); }
inline std::span<const IoSlice> Chain::readable() const {
  return {x_queue->slices(x_head), x_queue->x_slots[x_head].readable_count};
}
inline std::span<const IoSlice> Chain::writable() const {
  const Queue::Slot& slot = x_queue->x_slots[x_head];
  return {x_queue->slices(x_head) + slot.readable_count,
          static_cast<size_t>(slot.count - slot.readable_count)};
}
inline uint64_t Chain::readable_bytes() const { return x_queue->x_slots[x_head].readable_bytes; }
inline uint64_t Chain::writable_bytes() const { return x_queue->x_slots[x_head].writable_bytes; }

}  // namespace lethe
