// What the benchmarks of the scrub pool share.
#pragma once

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "memory/guest_memory.h"
#include "memory/scrub_pool.h"

namespace lethe {

using BenchClock = std::chrono::steady_clock;

[[noreturn]] inline void give_up(const char* what) {
  std::fprintf(stderr, "bench: %s\n", what);
  std::exit(1);
}

inline double seconds_since(BenchClock::time_point begin) {
  return std::chrono::duration<double>(BenchClock::now() - begin).count();
}

// Guest memory of one region at 0, with the pool beside it.
struct PooledGuest {
  PooledGuest(uint64_t size, ScrubPoolOptions options) {
    const GuestMemory::Range range{GuestAddr{0}, size};
    auto made = GuestMemory::create({&range, 1}, {});
    if (!made) give_up(made.error().text.c_str());
    memory = std::move(*made);
    host = memory->regions().front().host;
    pool = ScrubPool::create(*memory, options);
  }
  [[nodiscard]] uint8_t* chunk(size_t n) const { return host + n * kChunkBytes; }
  // As the return pipeline does: what the pool refuses (the kernel was about to migrate it, say) is
  // discarded.
  void give_back(size_t n) {
    if (pool->take(chunk(n))) return;
    ++refused;
    if (::madvise(chunk(n), kChunkBytes, MADV_DONTNEED) != 0) give_up("MADV_DONTNEED is refused");
  }
  // Until nothing waits to be scrubbed.
  void settle() const {
    const auto begin = BenchClock::now();
    while (pool->stats().dirty_bytes + pool->stats().scrubbing_bytes > 0) {
      if (seconds_since(begin) > 60) give_up("the pool does not get clean");
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
  std::unique_ptr<GuestMemory> memory;
  uint8_t* host = nullptr;
  std::unique_ptr<ScrubPool> pool;
  size_t refused = 0;
};

// As clear_page() of a processor with enhanced rep stosb.
inline void clear_pages(uint8_t* at, uint64_t size) {
  for (uint64_t offset = 0; offset < size; offset += 4096) {
    void* to = at + offset;
    uint64_t count = 4096;
    // SAFETY: writes exactly [to, to + 4096), inside the guest's memory.
    asm volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(0) : "memory");
  }
}

}  // namespace lethe
