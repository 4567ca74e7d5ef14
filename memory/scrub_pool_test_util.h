// For the scrub pool's tests: guest memory, its content, and pools with each way to move chunks.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>

#include "base/test_util.h"
#include "memory/guest_memory.h"
#include "memory/scrub_pool.h"

namespace lethe {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

inline std::unique_ptr<GuestMemory> make_memory(uint64_t size, uint64_t start = 0,
                                                MemoryBacking backing = MemoryBacking::kAnonymous) {
  const GuestMemory::Range range{GuestAddr{start}, size};
  return GuestMemory::create({&range, 1}, {.backing = backing}).value();
}

inline uint8_t* host_at_offset(const GuestMemory& memory, uint64_t offset) {
  const MemoryRegion region = memory.regions().front();
  return region.host + offset;
}

inline void fill(uint8_t* at, uint8_t value, uint64_t size = kChunkBytes) {
  std::fill_n(at, size, value);
}
inline bool all_are(const uint8_t* at, uint8_t value, uint64_t size = kChunkBytes) {
  return std::all_of(at, at + size, [&](uint8_t byte) { return byte == value; });
}

// Each test with each way to move chunks that works here.
class ScrubPoolTest : public ::testing::TestWithParam<ChunkMover> {
 protected:
  void SetUp() override {
    if (probe_chunk_mover().mover == ChunkMover::kNone)
      GTEST_SKIP() << "SKIPPED: " << probe_chunk_mover().why;
    if (GetParam() == ChunkMover::kUserfaultMove &&
        probe_chunk_mover().mover != ChunkMover::kUserfaultMove)
      GTEST_SKIP() << "SKIPPED: " << probe_chunk_mover().why;
  }
  static ScrubPoolOptions options(uint64_t bytes_max) {
    ScrubPoolOptions result;
    result.bytes_max = bytes_max;
    result.forget_max = milliseconds(60'000);
    result.probe = ChunkMoverProbe{GetParam(), "test"};
    return result;
  }
};

inline std::string mover_name(const ::testing::TestParamInfo<ChunkMover>& param) {
  return param.param == ChunkMover::kMremap ? "mremap" : "move";
}

}  // namespace lethe
