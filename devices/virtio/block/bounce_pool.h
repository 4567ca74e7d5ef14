// Aligned buffers for O_DIRECT transfers whose guest memory is not aligned.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "memory/object_cache.h"

namespace lethe {

// A fixed number of buffers of a fixed size: requests wait for one, and go through it piece by
// piece. Each is mapped at its first use, and kept until the shrinker wants its memory back.
//
// Threading: one thread; cache() is for the shrinker, on any: it calls `wake`, upon which the
// thread must purge_as_asked().
class BouncePool {
 public:
  static constexpr size_t kBuffers = 4;
  static constexpr size_t kBytes = 256 * 1024;  // each; page aligned

  explicit BouncePool(std::function<void()> wake = {})
      : x_cache({.name = "block_bounce",
                 .capacity = kBuffers,
                 .object_bytes = kBytes,
                 .make = map,
                 .wake = std::move(wake)}) {}

  // A buffer, or null if none is free (or the host has no memory and none is out).
  uint8_t* take() {
    if (x_out == kBuffers) return nullptr;
    std::optional<Buffer> buffer = x_cache.take();
    if (!buffer) return nullptr;
    ++x_out;
    return buffer->release();
  }
  void give_back(uint8_t* buffer) {
    --x_out;
    x_cache.give_back(Buffer(buffer));
  }
  [[nodiscard]] bool all_free() const { return x_out == 0; }

  [[nodiscard]] ShrinkableCache& cache() { return x_cache; }
  void purge_as_asked() { (void)x_cache.purge_as_asked(); }

 private:
  struct Unmap {
    void operator()(uint8_t* buffer) const { ::munmap(buffer, kBytes); }
  };
  using Buffer = std::unique_ptr<uint8_t, Unmap>;

  static std::optional<Buffer> map() {
    void* const memory =
        ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return std::nullopt;
    // SAFETY: fresh anonymous memory, the buffer's until it is unmapped.
    return Buffer(static_cast<uint8_t*>(memory));
  }

  ObjectCache<Buffer, NoLock> x_cache;
  size_t x_out = 0;
};

}  // namespace lethe
