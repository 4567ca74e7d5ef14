#include "memory/scrub_pool.h"

#include <sched.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "memory/pool_ops.h"
#include "memory/scrub_pool_test_util.h"

namespace lethe {
namespace {

INSTANTIATE_TEST_SUITE_P(Movers, ScrubPoolTest,
                         ::testing::Values(ChunkMover::kUserfaultMove, ChunkMover::kMremap),
                         mover_name);

TEST_P(ScrubPoolTest, taken_chunk_is_scrubbed_and_given_back_as_zeros) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  uint8_t* const chunk = host_at_offset(*memory, 4 * kMiB);
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

// A thread of this process, by its name; 0: there is none.
pid_t thread_named(const std::string& name) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string found;
    std::getline(std::ifstream(entry.path() / "comm"), found);
    if (found == name) return std::stoi(entry.path().filename());
  }
  return 0;
}

TEST_P(ScrubPoolTest, workers_come_with_the_first_chunk_and_run_at_idle_priority) {
  const auto memory = make_memory(16 * kMiB);
  auto with = options(8 * kMiB);
  with.workers = 2;
  const auto pool = ScrubPool::create(*memory, with);
  EXPECT_EQ(thread_named("scrub0"), 0);
  fill(host_at_offset(*memory, 0), 0xAA);
  ASSERT_TRUE(pool->take(host_at_offset(*memory, 0)));
  for (const char* name : {"scrub0", "scrub1"})
    EXPECT_TRUE(eventually([&] {
      const pid_t worker = thread_named(name);
      return worker != 0 && ::sched_getscheduler(worker) == SCHED_IDLE;
    })) << name;
}

TEST_P(ScrubPoolTest, missing_memory_that_was_never_touched_reads_as_zeros) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA);
  ASSERT_TRUE(pool->take(host_at_offset(*memory, 0)));
  ASSERT_TRUE(eventually([&] { return pool->stats().clean_bytes == kChunkBytes; }));
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0, 16 * kMiB));
  EXPECT_TRUE(eventually([&] { return pool->stats().fresh_bytes == 14 * kMiB; }));
  EXPECT_EQ(pool->stats().refaulted_bytes, kChunkBytes);
}

TEST_P(ScrubPoolTest, holds_no_more_than_its_limit) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(2 * kChunkBytes));
  int taken = 0;
  fill(host_at_offset(*memory, 0), 1, 16 * kMiB);
  for (uint64_t at = 0; at < 16 * kMiB; at += kChunkBytes)
    taken += pool->take(host_at_offset(*memory, at)) ? 1 : 0;
  EXPECT_EQ(taken, 2);
  EXPECT_TRUE(all_are(host_at_offset(*memory, 4 * kMiB), 1, 12 * kMiB))
      << "a refused chunk was touched";
}

TEST_P(ScrubPoolTest, a_pool_of_no_bytes_takes_nothing) {
  const auto memory = make_memory(4 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(0));
  fill(host_at_offset(*memory, 0), 1);
  EXPECT_FALSE(pool->take(host_at_offset(*memory, 0)));
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 1));
}

TEST_P(ScrubPoolTest, memory_never_touched_is_refused_and_starts_nothing) {
  const auto memory = make_memory(4 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(4 * kMiB));
  EXPECT_FALSE(pool->take(host_at_offset(*memory, 0)));
  EXPECT_EQ(pool->stats().moved_bytes, 0U);
  EXPECT_EQ(pool->stats().refused, 1U);
}

TEST_P(ScrubPoolTest, small_holes_are_filled_page_by_page) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA, 4 * kMiB);
  ASSERT_TRUE(pool->take(host_at_offset(*memory, 0)));
  uint8_t* const hole = host_at_offset(*memory, kChunkBytes + 64 * kKiB);
  ASSERT_EQ(::madvise(hole, 32 * kKiB, MADV_DONTNEED), 0);
  EXPECT_TRUE(all_are(hole, 0, 32 * kKiB));
  fill(hole, 0xBB, 32 * kKiB);
  EXPECT_TRUE(all_are(hole, 0xBB, 32 * kKiB));
  EXPECT_TRUE(all_are(hole - 64 * kKiB, 0xAA, 64 * kKiB));
  EXPECT_TRUE(all_are(hole + 32 * kKiB, 0xAA, kChunkBytes - 96 * kKiB));
  EXPECT_TRUE(eventually([&] { return pool->stats().small_bytes == 32 * kKiB; }));
}

TEST_P(ScrubPoolTest, a_walk_through_returned_memory_gets_neighbours_and_huge_pages) {
  constexpr uint64_t kSize = 64 * kMiB;
  constexpr uint64_t kRounds = 3;
  const auto memory = make_memory(kSize);
  const auto pool = ScrubPool::create(*memory, options(kSize));
  fill(host_at_offset(*memory, 0), 0xAA, kSize);
  for (uint64_t round = 1; round <= kRounds; ++round) {
    // Refused if it came back in pieces.
    for (uint64_t at = 0; at < kSize; at += kChunkBytes)
      ASSERT_TRUE(pool->take(host_at_offset(*memory, at))) << "round " << round << ", at " << at;
    ASSERT_TRUE(eventually([&] { return pool->stats().clean_bytes == kSize; }));
    EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0, kSize));
    fill(host_at_offset(*memory, 0), 0xAA, kSize);
    EXPECT_TRUE(eventually([&] {
      return pool->stats().refaulted_bytes + pool->stats().neighbour_bytes == round * kSize;
    }));
  }
  const auto stats = pool->stats();
  EXPECT_LE(stats.refaulted_bytes, kRounds * 8 * kChunkBytes) << "of 32 chunks a round";
  EXPECT_EQ(stats.lost_bytes, 0U);
}

TEST_P(ScrubPoolTest, switched_off_it_is_empty_and_faults_go_to_the_kernel) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(16 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA, 16 * kMiB);
  for (uint64_t at = 0; at < 16 * kMiB; at += kChunkBytes)
    ASSERT_TRUE(pool->take(host_at_offset(*memory, at)));
  pool->set_bytes_max(0);
  EXPECT_TRUE(eventually([&] {
    const auto now = pool->stats();
    return now.clean_bytes + now.dirty_bytes + now.scrubbing_bytes == 0;
  }));
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0, 16 * kMiB));
  EXPECT_EQ(pool->stats().refault.count, 0U);
  EXPECT_FALSE(pool->take(host_at_offset(*memory, 0)));

  pool->set_bytes_max(16 * kMiB);
  fill(host_at_offset(*memory, 0), 0xAA);
  EXPECT_TRUE(pool->take(host_at_offset(*memory, 0)));
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0));
  // The woken thread may be ahead of the thread that woke it.
  EXPECT_TRUE(eventually([&] { return pool->stats().refault.count == 1; }));
}

TEST_P(ScrubPoolTest, a_chunk_scrubbed_when_mapped_waits_dirty_until_then) {
  const auto memory = make_memory(8 * kMiB);
  auto with = options(8 * kMiB);
  with.scrub_at_map = true;
  const auto pool = ScrubPool::create(*memory, with);
  fill(host_at_offset(*memory, 0), 0xAA);
  ASSERT_TRUE(pool->take(host_at_offset(*memory, 0)));
  // Time for a worker that should not be there: nothing happens that could be waited for.
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(pool->stats().dirty_bytes, kChunkBytes);
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0));
  EXPECT_TRUE(eventually([&] { return pool->stats().refaulted_bytes == kChunkBytes; }));
  EXPECT_EQ(pool->stats().scrubbed_bytes, kChunkBytes);
  EXPECT_EQ(pool->stats().forget.count, 1U);
}

TEST_P(ScrubPoolTest, what_nobody_scrubs_is_discarded_within_the_promised_time) {
  const auto memory = make_memory(16 * kMiB);
  auto with = options(16 * kMiB);
  with.scrub_at_map = true;  // as if the workers got no processor time at all
  with.forget_max = milliseconds(2000);
  const auto pool = ScrubPool::create(*memory, with);
  fill(host_at_offset(*memory, 0), 0xAA, 16 * kMiB);
  const auto begin = steady_clock::now();
  for (uint64_t at = 0; at < 16 * kMiB; at += kChunkBytes)
    ASSERT_TRUE(pool->take(host_at_offset(*memory, at)));
  EXPECT_TRUE(eventually([&] { return pool->stats().expired_bytes == 16 * kMiB; }));
  EXPECT_LT(steady_clock::now() - begin, milliseconds(2000));
  const auto stats = pool->stats();
  EXPECT_EQ(stats.dirty_bytes, 0U);
  EXPECT_EQ(stats.scrubbed_bytes, 0U);
  EXPECT_EQ(stats.forget.count, 8U);
  EXPECT_LT(stats.forget.max_ns, 2'000'000'000U);
  EXPECT_TRUE(pool->take(host_at_offset(*memory, 0)) || all_are(host_at_offset(*memory, 0), 0));
}

TEST_P(ScrubPoolTest, clean_chunks_are_kept_however_old) {
  const auto memory = make_memory(8 * kMiB);
  auto with = options(8 * kMiB);
  int clean = 0;
  for (int i = 0; i < 8 && clean == 0; ++i) {  // on a busy host the worker may be too late
    with.forget_max = milliseconds(20) * (1 << i);
    const auto pool = ScrubPool::create(*memory, with);
    fill(host_at_offset(*memory, 0), 0xAA);
    ASSERT_TRUE(pool->take(host_at_offset(*memory, 0)));
    EXPECT_TRUE(eventually([&] { return pool->stats().dirty_bytes == 0; }));
    // That time passes is what is tested: three times the promise.
    std::this_thread::sleep_for(3 * with.forget_max);
    if (pool->stats().clean_bytes == kChunkBytes) ++clean;
  }
  EXPECT_EQ(clean, 1);
}

TEST_P(ScrubPoolTest, regions_off_the_chunks_grid_are_watched_whole_and_taken_in_chunks) {
  // From 1 MiB + 4 KiB: a part of a chunk, two chunks, a part.
  constexpr uint64_t kStart = kMiB + 4 * kKiB;
  constexpr uint64_t kSize = 7 * kMiB;
  const auto memory = make_memory(kSize, kStart);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA, kSize);
  uint8_t* const first = host_at_offset(*memory, 2 * kMiB - kStart);
  EXPECT_FALSE(pool->take(host_at_offset(*memory, 0)));
  EXPECT_FALSE(pool->take(first - kChunkBytes));
  EXPECT_FALSE(pool->take(first + 3 * kChunkBytes));
  EXPECT_FALSE(pool->take(first + 4 * kKiB));
  ASSERT_TRUE(pool->take(first));
  ASSERT_TRUE(pool->take(first + kChunkBytes));
  ASSERT_EQ(::madvise(host_at_offset(*memory, 0), kSize, MADV_DONTNEED), 0);
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0, kSize));
  fill(host_at_offset(*memory, 0), 0xBB, kSize);
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0xBB, kSize));
}

TEST_P(ScrubPoolTest, memory_smaller_than_a_chunk_has_none_to_take) {
  const auto memory = make_memory(64 * kKiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA, 64 * kKiB);
  EXPECT_FALSE(pool->take(host_at_offset(*memory, 0)));
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0xAA, 64 * kKiB));
}

TEST_P(ScrubPoolTest, shared_memory_is_refused) {
  const auto memory = make_memory(8 * kMiB, 0, MemoryBacking::kShared);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA, 8 * kMiB);
  EXPECT_FALSE(pool->take(host_at_offset(*memory, 0)));
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0xAA, 8 * kMiB));
  pool->set_poison(0x11111111);
  EXPECT_FALSE(pool->honours_poison());
}

TEST_P(ScrubPoolTest, a_chunk_in_pieces_is_refused_and_keeps_its_content) {
  const auto memory = make_memory(8 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  uint8_t* const chunk = host_at_offset(*memory, 0);
  fill(chunk, 0xAA);
  ASSERT_EQ(::madvise(chunk, 4 * kKiB, MADV_DONTNEED), 0);
  EXPECT_FALSE(pool->take(chunk));
  EXPECT_TRUE(all_are(chunk, 0, 4 * kKiB));
  EXPECT_TRUE(all_are(chunk + 4 * kKiB, 0xAA, kChunkBytes - 4 * kKiB));
}

TEST_P(ScrubPoolTest, guest_memory_of_small_pages_is_moved_too) {
  const GuestMemory::Range range{GuestAddr{0}, 8 * kMiB};
  const auto memory = GuestMemory::create({&range, 1}, {.thp = false}).value();
  auto with = options(8 * kMiB);
  with.huge_pages = false;
  const auto pool = ScrubPool::create(*memory, with);
  fill(host_at_offset(*memory, 0), 0xAA, 8 * kMiB);
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(pool->take(host_at_offset(*memory, 0)));
    EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0));
    fill(host_at_offset(*memory, 0), 0xBB);
    EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0xBB));
  }
  EXPECT_TRUE(all_are(host_at_offset(*memory, kChunkBytes), 0xAA, 6 * kMiB));
}

TEST_P(ScrubPoolTest, single_pages_made_anew_take_their_room_from_the_pool) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA, 16 * kMiB);
  for (uint64_t at = 0; at < 8 * kMiB; at += kChunkBytes)
    ASSERT_TRUE(pool->take(host_at_offset(*memory, at)));
  const auto held = [&] {
    const auto stats = pool->stats();
    return stats.dirty_bytes + stats.scrubbing_bytes + stats.clean_bytes;
  };
  ASSERT_TRUE(eventually([&] { return pool->stats().clean_bytes == 8 * kMiB; }));
  // Three chunks but for their first pages.
  for (uint64_t at = 8 * kMiB; at < 14 * kMiB; at += kChunkBytes) {
    ASSERT_EQ(::madvise(host_at_offset(*memory, at + 4096), kChunkBytes - 4096, MADV_DONTNEED), 0);
    fill(host_at_offset(*memory, at), 0xBB);
    EXPECT_LE(held() + resident_bytes(host_at_offset(*memory, 0), 16 * kMiB), 16 * kMiB);
  }
  // Counted once the guest has its page, and goes on.
  EXPECT_TRUE(eventually([&] { return pool->stats().small_bytes == 3 * (kChunkBytes - 4096); }));
  EXPECT_EQ(pool->stats().trimmed_bytes, 3 * kChunkBytes);
  EXPECT_TRUE(all_are(host_at_offset(*memory, 8 * kMiB), 0xBB, 6 * kMiB));
}

TEST_P(ScrubPoolTest, a_pool_destroyed_full_of_chunks_leaves_guest_memory_usable) {
  const auto memory = make_memory(16 * kMiB);
  fill(host_at_offset(*memory, 0), 0xAA, 16 * kMiB);
  {
    const auto pool = ScrubPool::create(*memory, options(16 * kMiB));
    for (uint64_t at = 0; at < 8 * kMiB; at += kChunkBytes)
      ASSERT_TRUE(pool->take(host_at_offset(*memory, at)));
  }
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0, 8 * kMiB));
  EXPECT_TRUE(all_are(host_at_offset(*memory, 8 * kMiB), 0xAA, 8 * kMiB));
}

// Every word of the range reads as the value.
bool words_are(const uint8_t* at, uint32_t value, uint64_t size = kChunkBytes) {
  // SAFETY: aligned, and inside guest memory.
  const auto* const words = reinterpret_cast<const uint32_t*>(at);
  return std::all_of(words, words + size / 4, [&](uint32_t word) { return word == value; });
}

TEST_P(ScrubPoolTest, returned_memory_reads_as_the_poison_value_and_untouched_memory_as_zeros) {
  constexpr uint32_t kPoison = 0xDEADBEEF;
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA, 6 * kMiB);
  fill(host_at_offset(*memory, 8 * kMiB), 0xAA, 64 * kKiB);
  EXPECT_FALSE(pool->honours_poison());
  pool->set_poison(kPoison);
  EXPECT_TRUE(pool->honours_poison());
  // By the pool, by a discard of a whole chunk, of some pages; and pages that come to be later.
  ASSERT_TRUE(pool->take(host_at_offset(*memory, 0)));
  ASSERT_EQ(::madvise(host_at_offset(*memory, kChunkBytes), kChunkBytes, MADV_DONTNEED), 0);
  ASSERT_EQ(::madvise(host_at_offset(*memory, 4 * kMiB), 32 * kKiB, MADV_DONTNEED), 0);
  EXPECT_TRUE(words_are(host_at_offset(*memory, 0), kPoison));
  EXPECT_TRUE(words_are(host_at_offset(*memory, kChunkBytes), kPoison));
  EXPECT_TRUE(words_are(host_at_offset(*memory, 4 * kMiB), kPoison, 32 * kKiB));
  EXPECT_TRUE(
      all_are(host_at_offset(*memory, 4 * kMiB + 32 * kKiB), 0xAA, kChunkBytes - 32 * kKiB));
  EXPECT_TRUE(all_are(host_at_offset(*memory, 14 * kMiB), 0));
  ASSERT_EQ(::madvise(host_at_offset(*memory, 14 * kMiB), kChunkBytes, MADV_DONTNEED), 0);
  EXPECT_TRUE(words_are(host_at_offset(*memory, 14 * kMiB), kPoison));
}

TEST_P(ScrubPoolTest, another_poison_value_holds_for_clean_chunks_too) {
  const auto memory = make_memory(16 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(16 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA, 16 * kMiB);
  for (uint64_t at = 0; at < 8 * kMiB; at += kChunkBytes)
    ASSERT_TRUE(pool->take(host_at_offset(*memory, at)));
  ASSERT_TRUE(eventually([&] { return pool->stats().clean_bytes == 8 * kMiB; }));
  pool->set_poison(0x22222222);
  for (uint64_t at = 8 * kMiB; at < 16 * kMiB; at += kChunkBytes)
    ASSERT_TRUE(pool->take(host_at_offset(*memory, at)));
  ASSERT_TRUE(
      eventually([&] { return pool->stats().dirty_bytes + pool->stats().scrubbing_bytes == 0; }));
  pool->set_poison(0x33333333);
  EXPECT_TRUE(words_are(host_at_offset(*memory, 8 * kMiB), 0x33333333, 8 * kMiB));
  // Missing since before a value was set: never there, as far as anyone can tell.
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0, 8 * kMiB));
}

TEST_P(ScrubPoolTest, a_poison_value_outlives_the_pools_being_switched_off) {
  const auto memory = make_memory(8 * kMiB);
  const auto pool = ScrubPool::create(*memory, options(8 * kMiB));
  fill(host_at_offset(*memory, 0), 0xAA, 8 * kMiB);
  pool->set_poison(0x44444444);
  ASSERT_TRUE(pool->take(host_at_offset(*memory, 0)));
  pool->set_bytes_max(0);
  EXPECT_TRUE(pool->honours_poison());
  EXPECT_TRUE(words_are(host_at_offset(*memory, 0), 0x44444444));
}

}  // namespace
}  // namespace lethe
