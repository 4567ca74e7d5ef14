// Aligned buffers for O_DIRECT transfers whose guest memory is not aligned.
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace lethe {

// A fixed number of buffers of a fixed size: requests wait for one, and go through it piece by
// piece. The memory is reserved at the first use. One thread.
class BouncePool {
 public:
  static constexpr size_t kBuffers = 4;
  static constexpr size_t kBytes = 256 * 1024;  // each; page aligned

  BouncePool() = default;
  ~BouncePool() {
    if (x_memory != nullptr) ::munmap(x_memory, kBuffers * kBytes);
  }
  BouncePool(const BouncePool&) = delete;
  BouncePool& operator=(const BouncePool&) = delete;

  // A buffer, or null if none is free (or the host has no memory and none is out).
  uint8_t* take() {
    if (x_memory == nullptr && !reserve()) return nullptr;
    return x_free_count == 0 ? nullptr : x_free[--x_free_count];
  }
  void give_back(uint8_t* buffer) { x_free[x_free_count++] = buffer; }
  [[nodiscard]] bool all_free() const { return x_memory == nullptr || x_free_count == kBuffers; }

 private:
  bool reserve() {
    void* const memory = ::mmap(nullptr, kBuffers * kBytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
    // SAFETY: fresh anonymous memory, ours until the destructor.
    x_memory = static_cast<uint8_t*>(memory);
    for (size_t i = 0; i < kBuffers; ++i) give_back(x_memory + i * kBytes);
    return true;
  }

  uint8_t* x_memory = nullptr;
  std::array<uint8_t*, kBuffers> x_free{};
  size_t x_free_count = 0;
};

}  // namespace lethe
