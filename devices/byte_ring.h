// A first-in, first-out buffer of bytes with a fixed capacity. One thread, or the caller's lock.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/assert.h"

namespace lethe {

template <size_t kCapacity>
class ByteRing {
 public:
  // Leaves the bytes as they are: clearing them would make every page of a ring that is hardly used
  // resident, and cost each start of a VM a page fault for it.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-member-init): what push() has not written is not read
  ByteRing() {}
  [[nodiscard]] size_t size() const { return x_size; }
  [[nodiscard]] size_t room() const { return kCapacity - x_size; }
  [[nodiscard]] bool empty() const { return x_size == 0; }
  void clear() { x_size = 0; }

  // Appends what fits; returns how many bytes that was.
  size_t push(std::span<const uint8_t> bytes) {
    const size_t count = std::min(bytes.size(), room());
    const size_t end = (x_start + x_size) % kCapacity;
    const size_t first = std::min(count, kCapacity - end);
    std::copy_n(bytes.begin(), first, x_bytes.begin() + end);
    std::copy_n(bytes.begin() + first, count - first, x_bytes.begin());
    x_size += count;
    return count;
  }
  bool push(uint8_t byte) { return push(std::span(&byte, 1)) == 1; }

  // The oldest bytes, as far as they lie in one piece; empty only if the ring is.
  [[nodiscard]] std::span<const uint8_t> front() const {
    return std::span(x_bytes).subspan(x_start, std::min(x_size, kCapacity - x_start));
  }
  void pop(size_t count) {
    LETHE_ASSERT(count <= x_size);
    x_size -= count;
    // Back to the front when empty: memory that no burst needed is never touched.
    x_start = x_size == 0 ? 0 : (x_start + count) % kCapacity;
  }
  uint8_t pop_one() {
    const uint8_t byte = x_bytes[x_start];
    pop(1);
    return byte;
  }

 private:
  std::array<uint8_t, kCapacity> x_bytes;
  size_t x_start = 0;
  size_t x_size = 0;
};

}  // namespace lethe
