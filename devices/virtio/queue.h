// The device side of a split virtqueue (virtio 1.2, 2.7), and the chains popped from it.
//
// Everything in the rings is the guest's word: it is copied, checked once and used once. A rule
// broken in the ring makes the queue broken for good (`broken()`): nothing is popped or completed
// any more until the device is reset, and the device says DEVICE_NEEDS_RESET (2.1.1).
//
// Threading: one thread owns a queue. No allocation after construction, except for chains longer
// than kInlineSlices, whose storage is kept for the next one.
#pragma once

#include <linux/virtio_ring.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "devices/interrupt.h"
#include "memory/guest_memory.h"

namespace lethe {

inline constexpr uint16_t kQueueSizeMax = 1024;  // ours; the spec allows 32768 (2.7)

struct QueueLayout {
  uint16_t size = 0;   // entries, a power of two up to kQueueSizeMax
  GuestAddr desc;      // descriptor table, 16-byte aligned
  GuestAddr driver;    // available ring, 2-byte aligned
  GuestAddr device;    // used ring, 4-byte aligned
};

struct QueueCounters {  // what the queue refused and did; read by any thread
  std::atomic<uint64_t> chains{0};
  std::atomic<uint64_t> interrupts{0};
  std::atomic<uint64_t> rejected{0};  // rules broken by the driver; the queue is broken after one
};

class Queue;

// A descriptor chain: what the device may read, then what it may write (2.7.4.2). Move-only and
// completed exactly once: by complete(), or, if it is dropped, by the destructor with 0 bytes
// written, so that the driver always gets its buffers back.
class Chain {
 public:
  Chain(Chain&& other) noexcept;
  Chain& operator=(Chain&& other) noexcept;
  ~Chain();

  [[nodiscard]] uint16_t head() const { return x_head; }
  [[nodiscard]] std::span<const IoSlice> readable() const;
  [[nodiscard]] std::span<const IoSlice> writable() const;
  [[nodiscard]] uint64_t readable_bytes() const;
  [[nodiscard]] uint64_t writable_bytes() const;

  // Copies out of the readable part from byte `offset`; returns the bytes copied (less at its end).
  size_t copy_from_readable(uint64_t offset, std::span<uint8_t> to) const;
  // Copies into the writable part at byte `offset`; returns the bytes copied.
  size_t copy_to_writable(uint64_t offset, std::span<const uint8_t> from) const;

  // Puts the chain on the used ring; `written` is the count of bytes written from the start of the
  // writable part (2.7.8.2). The chain is empty afterwards. Call Queue::interrupt_if_needed() after
  // a batch of these.
  void complete(uint32_t written);

 private:
  friend class Queue;
  Chain(Queue& queue, uint16_t head) : x_queue(&queue), x_head(head) {}
  Queue* x_queue = nullptr;
  uint16_t x_head = 0;
};

class Queue {
 public:
  static constexpr size_t kInlineSlices = 8;

  // `features`: the negotiated bits; VIRTIO_RING_F_INDIRECT_DESC and VIRTIO_RING_F_EVENT_IDX count
  // here. Fails (kHost, text for the log) when the layout breaks a rule of 2.7: size no power of
  // two or above kQueueSizeMax, a ring misaligned or not wholly in one region of memory.
  // `memory`, `interrupt` and `counters` must outlive the queue.
  [[nodiscard]] static Result<std::unique_ptr<Queue>> create(const GuestMemory& memory,
                                                             const QueueLayout& layout,
                                                             uint64_t features,
                                                             Interrupt& interrupt,
                                                             QueueCounters& counters);
  // No chain may be alive.
  ~Queue();

  // The next available chain. Nothing: the ring is empty, or the queue is broken (look).
  [[nodiscard]] std::optional<Chain> pop();
  [[nodiscard]] bool broken() const { return x_broken; }
  // Why, for the log; empty if not broken.
  [[nodiscard]] const char* broken_reason() const { return x_broken_reason; }

  // Asks the driver (not) to kick. enable returns true if chains became available meanwhile: the
  // caller must pop again (2.7.10: full fence between setting and looking).
  void disable_kicks();
  [[nodiscard]] bool enable_kicks();

  // Interrupts the driver if it wants one for what was completed since the last call (2.7.7).
  void interrupt_if_needed();

  [[nodiscard]] uint16_t size() const { return x_size; }
  [[nodiscard]] uint16_t in_flight() const { return x_in_flight; }

 private:
  friend class Chain;
  // Left to queue.cc's author: the rest of the members.
  Queue() = default;
  uint16_t x_size = 0;
  uint16_t x_in_flight = 0;
  bool x_broken = false;
  const char* x_broken_reason = "";
};

}  // namespace lethe
