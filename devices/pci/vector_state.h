// Whether one MSI-X vector may send, and whether it has something pending: where a device's signal
// meets a vCPU's mask, without a lock.
//
// One atomic byte with three bits. signal() either sees the vector open, and delivers, or sets
// pending by a compare-exchange against what it saw. open() exchanges the whole byte, so it gets
// every pending bit set before it, and delivers that; a signal that lost the race finds the byte
// changed, and looks again. So no signal is lost, and one that is pending is delivered once.
#pragma once

#include <atomic>
#include <cstdint>

namespace lethe {

// `Byte` is std::atomic<uint8_t>, save in the test that tries every interleaving.
template <typename Byte = std::atomic<uint8_t>>
class VectorState {
 public:
  // Any thread. True: the caller delivers now. Nothing becomes of it while MSI-X is off.
  [[nodiscard]] bool signal() {
    uint8_t seen = x_bits.load(std::memory_order_acquire);
    for (;;) {
      if ((seen & kEnabled) == 0) return false;
      if ((seen & kOpen) != 0) return true;
      // Also when pending is set already: the read-modify-write orders what the device wrote before
      // this signal before the delivery by whoever opens the vector. A plain load would not.
      if (x_bits.compare_exchange_weak(seen, seen | kPending, std::memory_order_acq_rel,
                                       std::memory_order_acquire))
        return false;
    }
  }

  // These three under the function's lock. True: the caller delivers what was pending, now.
  [[nodiscard]] bool open() {
    return (x_bits.exchange(kEnabled | kOpen, std::memory_order_acq_rel) & kPending) != 0;
  }
  // MSI-X is on, but the vector or the function is masked.
  void mask() {
    x_bits.fetch_or(kEnabled, std::memory_order_acq_rel);
    x_bits.fetch_and(static_cast<uint8_t>(~kOpen), std::memory_order_acq_rel);
  }
  // MSI-X is off. What was pending is forgotten: the function has no way to interrupt.
  void disable() { x_bits.store(0, std::memory_order_release); }

  // Any thread.
  [[nodiscard]] bool pending() const {
    return (x_bits.load(std::memory_order_acquire) & kPending) != 0;
  }

 private:
  enum : uint8_t { kEnabled = 1, kOpen = 2, kPending = 4 };
  Byte x_bits{0};
};

}  // namespace lethe
