#include "memory/scrub_pool.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "memory/pool_ops.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

bool eventually(const std::function<bool()>& condition) {
  const auto deadline = steady_clock::now() + milliseconds(10'000);
  while (!condition()) {
    if (steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return true;
}

std::unique_ptr<GuestMemory> make_memory(uint64_t size, uint64_t start = 0,
                                         MemoryBacking backing = MemoryBacking::kAnonymous) {
  const GuestMemory::Range range{GuestAddr{start}, size};
  return GuestMemory::create({&range, 1}, {.backing = backing}).value();
}

uint8_t* host_of(const GuestMemory& memory, uint64_t offset) {
  const MemoryRegion region = memory.regions().front();
  return region.host + offset;
}

void fill(uint8_t* at, uint8_t value, uint64_t size = kChunkBytes) { std::fill_n(at, size, value); }
bool all_are(const uint8_t* at, uint8_t value, uint64_t size = kChunkBytes) {
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
INSTANTIATE_TEST_SUITE_P(Movers, ScrubPoolTest,
                         ::testing::Values(ChunkMover::kUserfaultMove, ChunkMover::kMremap),
                         [](const auto& param) {
                           return param.param == ChunkMover::kMremap ? "mremap" : "move";
                         });

TEST_P(ScrubPoolTest, taken_chunk_is_scrubbed_and_given_back_as_zeros) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  uint8_t* const chunk = host_of(*memory, 4 * kMiB);
  fill(chunk, 0xAA);
  ASSERT_TRUE(pool->take(chunk));
  EXPECT_TRUE(eventually([&] { return pool->stats().clean_bytes == kChunkBytes; }));
  EXPECT_EQ(pool->stats().dirty_bytes, 0U);
  EXPECT_TRUE(all_are(chunk, 0));
  // The woken thread may be ahead of the thread that woke it.
  EXPECT_TRUE(eventually([&] { return pool->stats().refault.count == 1; }));
  const auto stats = pool->stats();
  EXPECT_EQ(stats.clean_bytes, 0U);
  EXPECT_EQ(stats.moved_bytes, kChunkBytes);
  EXPECT_EQ(stats.refaulted_bytes, kChunkBytes);
  EXPECT_EQ(stats.fresh_bytes, 0U);
  EXPECT_EQ(stats.small_bytes, 0U);
  EXPECT_EQ(stats.forget.count, 1U);
}

TEST_P(ScrubPoolTest, missing_memory_that_was_never_touched_reads_as_zeros) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_of(*memory, 0), 0xAA);
  ASSERT_TRUE(pool->take(host_of(*memory, 0)));
  ASSERT_TRUE(eventually([&] { return pool->stats().clean_bytes == kChunkBytes; }));
  EXPECT_TRUE(all_are(host_of(*memory, 0), 0, 16 * kMiB));
  EXPECT_TRUE(eventually([&] { return pool->stats().fresh_bytes == 14 * kMiB; }));
  EXPECT_EQ(pool->stats().refaulted_bytes, kChunkBytes);
}

TEST_P(ScrubPoolTest, holds_no_more_than_its_limit) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(2 * kChunkBytes));
  int taken = 0;
  fill(host_of(*memory, 0), 1, 16 * kMiB);
  for (uint64_t at = 0; at < 16 * kMiB; at += kChunkBytes)
    taken += pool->take(host_of(*memory, at)) ? 1 : 0;
  EXPECT_EQ(taken, 2);
  EXPECT_TRUE(all_are(host_of(*memory, 4 * kMiB), 1, 12 * kMiB)) << "a refused chunk was touched";
}

TEST_P(ScrubPoolTest, a_pool_of_no_bytes_takes_nothing) {
  const auto memory = make_memory(4 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(0));
  fill(host_of(*memory, 0), 1);
  EXPECT_FALSE(pool->take(host_of(*memory, 0)));
  EXPECT_TRUE(all_are(host_of(*memory, 0), 1));
}

TEST_P(ScrubPoolTest, memory_never_touched_is_refused_and_starts_nothing) {
  const auto memory = make_memory(4 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(4 * kMiB));
  EXPECT_FALSE(pool->take(host_of(*memory, 0)));
  EXPECT_EQ(pool->stats().moved_bytes, 0U);
  EXPECT_EQ(pool->stats().refused, 1U);
}

TEST_P(ScrubPoolTest, small_holes_are_filled_page_by_page) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_of(*memory, 0), 0xAA, 4 * kMiB);
  ASSERT_TRUE(pool->take(host_of(*memory, 0)));
  uint8_t* const hole = host_of(*memory, kChunkBytes + 64 * kKiB);
  ASSERT_EQ(::madvise(hole, 32 * kKiB, MADV_DONTNEED), 0);
  EXPECT_TRUE(all_are(hole, 0, 32 * kKiB));
  fill(hole, 0xBB, 32 * kKiB);
  EXPECT_TRUE(all_are(hole, 0xBB, 32 * kKiB));
  EXPECT_TRUE(all_are(hole - 64 * kKiB, 0xAA, 64 * kKiB));
  EXPECT_TRUE(all_are(hole + 32 * kKiB, 0xAA, kChunkBytes - 96 * kKiB));
  EXPECT_TRUE(eventually([&] { return pool->stats().small_bytes == 32 * kKiB; }));
}

TEST_P(ScrubPoolTest, a_walk_through_returned_memory_gets_neighbours_with_each_fault) {
  constexpr uint64_t kSize = 64 * kMiB;
  const auto memory = make_memory(kSize);
  const auto pool = ScrubPool::create(*memory, options(kSize));
  fill(host_of(*memory, 0), 0xAA, kSize);
  for (uint64_t at = 0; at < kSize; at += kChunkBytes)
    ASSERT_TRUE(pool->take(host_of(*memory, at)));
  ASSERT_TRUE(eventually([&] { return pool->stats().clean_bytes == kSize; }));
  EXPECT_TRUE(all_are(host_of(*memory, 0), 0, kSize));
  EXPECT_TRUE(eventually(
      [&] { return pool->stats().refaulted_bytes + pool->stats().neighbour_bytes == kSize; }));
  const auto stats = pool->stats();
  EXPECT_LE(stats.refaulted_bytes, 8 * kChunkBytes) << "of 32 chunks";
}

TEST_P(ScrubPoolTest, switched_off_it_is_empty_and_faults_go_to_the_kernel) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(16 * kMiB));
  fill(host_of(*memory, 0), 0xAA, 16 * kMiB);
  for (uint64_t at = 0; at < 16 * kMiB; at += kChunkBytes)
    ASSERT_TRUE(pool->take(host_of(*memory, at)));
  pool->set_bytes_max(0);
  EXPECT_TRUE(eventually([&] {
    const auto now = pool->stats();
    return now.clean_bytes + now.dirty_bytes + now.scrubbing_bytes == 0;
  }));
  EXPECT_TRUE(all_are(host_of(*memory, 0), 0, 16 * kMiB));
  EXPECT_EQ(pool->stats().refault.count, 0U);
  EXPECT_FALSE(pool->take(host_of(*memory, 0)));

  pool->set_bytes_max(16 * kMiB);
  fill(host_of(*memory, 0), 0xAA);
  EXPECT_TRUE(pool->take(host_of(*memory, 0)));
  EXPECT_TRUE(all_are(host_of(*memory, 0), 0));
  // The woken thread may be ahead of the thread that woke it.
  EXPECT_TRUE(eventually([&] { return pool->stats().refault.count == 1; }));
}

}  // namespace
}  // namespace lethe
