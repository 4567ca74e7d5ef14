// That the parts of a flush are discarded together, and what happens when the host does not, or
// does only some of them.
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "memory/return_test_util.h"

namespace lethe {
namespace {

using Added = ReturnPipeline::Added;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kBase = 64 * kMiB;
constexpr uint64_t kSize = 64 * kMiB;
constexpr auto kReport = ReturnSource::kReport;

class ReturnBatch : public testing::Test {
 protected:
  void make(MemoryBacking backing = MemoryBacking::kAnonymous, ReturnPipelineOptions options = {},
            uint64_t size = kSize) {
    const GuestMemory::Range range{.start = GuestAddr{kBase}, .size = size};
    memory = GuestMemory::create({&range, 1}, {.backing = backing}).value();
    options.ops = &ops;
    // On a busy machine no test is to depend on it by chance.
    if (options.wake_time_max == ReturnPipelineOptions{}.wake_time_max)
      options.wake_time_max = std::chrono::hours(1);
    pipeline = std::make_unique<ReturnPipeline>(*memory, std::move(options));
  }
  void add(uint64_t offset, uint64_t bytes, ReturnSource source = kReport) {
    ASSERT_EQ(pipeline->add(GuestAddr{kBase + offset}, bytes, source), Added::kTaken);
  }
  // Ten times 2 MiB of each 4, all of it filled.
  static constexpr uint64_t kTen = 10;
  void add_ten() {
    fill(*memory, kBase, kSize, 0xaa);
    for (uint64_t i = 0; i < kTen; ++i) add(i * 4 * kMiB, 2 * kMiB);
  }
  [[nodiscard]] bool reads(uint64_t offset, uint64_t bytes, uint8_t value) const {
    return all_bytes_are(*memory, kBase + offset, bytes, value);
  }
  // All that add_ten() added, and nothing else, reads as zero.
  void expect_ten_forgotten() const {
    for (uint64_t i = 0; i < kSize / (4 * kMiB); ++i) {
      EXPECT_TRUE(reads(i * 4 * kMiB, 2 * kMiB, i < kTen ? 0 : 0xaa)) << i;
      EXPECT_TRUE(reads(i * 4 * kMiB + 2 * kMiB, 2 * kMiB, 0xaa)) << i;
    }
  }
  [[nodiscard]] uint8_t* host(uint64_t offset) const { return host_of(*memory, kBase + offset); }
  [[nodiscard]] const ReturnCounters& counters() const { return pipeline->counters(); }

  FailingOps ops;
  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<ReturnPipeline> pipeline;
};

TEST_F(ReturnBatch, all_ranges_of_a_flush_are_discarded_by_one_call) {
  make();
  add_ten();
  ASSERT_TRUE(pipeline->flush());
  EXPECT_EQ(ops.together, std::vector<size_t>{kTen});
  EXPECT_TRUE(ops.alone.empty());
  EXPECT_EQ(counters().freed, kTen * 2 * kMiB);
  EXPECT_EQ(counters().host_failures, 0u);
  expect_ten_forgotten();
}

TEST_F(ReturnBatch, a_range_alone_is_discarded_by_the_plain_call) {
  make();
  fill(*memory, kBase, 4 * kMiB, 0xaa);
  add(0, 2 * kMiB);
  ASSERT_TRUE(pipeline->flush());
  EXPECT_TRUE(ops.together.empty());
  EXPECT_EQ(ops.alone.size(), 1u);
  EXPECT_TRUE(reads(0, 2 * kMiB, 0));
  EXPECT_TRUE(reads(2 * kMiB, 2 * kMiB, 0xaa));
}

TEST_F(ReturnBatch, where_the_kernel_refuses_each_range_has_a_call_of_its_own) {
  ops.together_max = 0;
  make();
  add_ten();
  ASSERT_TRUE(pipeline->flush());
  EXPECT_EQ(ops.alone.size(), kTen);
  EXPECT_EQ(counters().freed, kTen * 2 * kMiB);
  EXPECT_EQ(counters().overwritten, 0u);
  EXPECT_EQ(counters().host_failures, 0u) << "nothing failed";
  expect_ten_forgotten();
}

TEST_F(ReturnBatch, what_one_call_leaves_over_has_a_call_each_and_nothing_is_counted_twice) {
  ops.together_max = 4;
  make();
  add_ten();
  ASSERT_TRUE(pipeline->flush());
  EXPECT_EQ(ops.together, std::vector<size_t>{kTen});
  ASSERT_EQ(ops.alone.size(), kTen - 4);
  for (uint64_t i = 4; i < kTen; ++i) {
    EXPECT_EQ(ops.alone[i - 4].data(), host(i * 4 * kMiB));
    EXPECT_EQ(ops.alone[i - 4].size(), 2 * kMiB);
  }
  EXPECT_EQ(counters().freed, kTen * 2 * kMiB);
  EXPECT_EQ(counters().absent, 0u);
  EXPECT_EQ(counters().host_failures, 0u);
  expect_ten_forgotten();
}

TEST_F(ReturnBatch, a_range_that_the_host_refuses_is_overwritten_and_the_others_are_freed) {
  for (const uint64_t bad : {uint64_t{0}, uint64_t{5}, kTen - 1}) {
    make();
    ops.fail_at = {host(bad * 4 * kMiB + 2 * kMiB - 1)};
    add_ten();
    ASSERT_TRUE(pipeline->flush());
    expect_ten_forgotten();
    // The failing call had forgotten half of it: that is no longer there to be overwritten.
    EXPECT_EQ(counters().freed, (kTen - 1) * 2 * kMiB);
    EXPECT_EQ(counters().overwritten, 1 * kMiB);
    EXPECT_EQ(counters().absent, 1 * kMiB);
    EXPECT_EQ(counters().host_failures, 1u);
  }
}

TEST_F(ReturnBatch, a_report_that_the_host_refuses_reads_as_poison_and_other_ranges_as_zero) {
  FakeTaker taker;
  taker.honours = true;  // so that reports are discarded in spite of their poison
  make(MemoryBacking::kAnonymous, {.taker = &taker});
  ops.together_max = 0;  // nothing of them is gone before
  pipeline->set_poison(0x55555555);
  fill(*memory, kBase, kSize, 0xaa);
  for (uint64_t i = 0; i < 6; ++i)
    add(i * 4 * kMiB, 2 * kMiB, i % 2 == 0 ? kReport : ReturnSource::kInflate);
  ops.fail_at = {host(4 * 4 * kMiB), host(5 * 4 * kMiB)};
  ASSERT_TRUE(pipeline->flush());
  EXPECT_EQ(ops.together, std::vector<size_t>{6});
  for (uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(reads(i * 4 * kMiB, 2 * kMiB, 0)) << i;
  EXPECT_TRUE(reads(16 * kMiB, 2 * kMiB, 0x55));
  EXPECT_TRUE(reads(20 * kMiB, 2 * kMiB, 0));
  EXPECT_TRUE(reads(22 * kMiB, 8 * kMiB, 0xaa));
  EXPECT_EQ(counters().overwritten, 4 * kMiB);
  EXPECT_EQ(counters().freed, 8 * kMiB);
  EXPECT_EQ(counters().host_failures, 2u);
}

TEST_F(ReturnBatch, a_host_that_refuses_everything_has_everything_overwritten) {
  ops.fail_advice = {MADV_DONTNEED, MADV_FREE};
  make();
  add_ten();
  ASSERT_TRUE(pipeline->flush());
  expect_ten_forgotten();
  EXPECT_EQ(counters().freed, 0u);
  EXPECT_EQ(counters().overwritten + counters().absent, kTen * 2 * kMiB);
  EXPECT_GE(counters().overwritten, (kTen - 1) * 2 * kMiB);
  EXPECT_EQ(counters().host_failures, kTen);
}

TEST_F(ReturnBatch, nothing_counts_as_returned_before_the_call_has_returned) {
  make();
  add_ten();
  int calls = 0;
  ops.before_all = [&](std::span<const iovec>) {
    ++calls;
    EXPECT_EQ(counters().freed + counters().absent + counters().overwritten, 0u);
    EXPECT_EQ(pipeline->forget_latency().count, 0u);
    EXPECT_TRUE(reads(0, kSize, 0xaa));
  };
  ASSERT_TRUE(pipeline->flush());
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(counters().freed, kTen * 2 * kMiB);
}

// Whoever ends a flush early may complete what it has worked off.
TEST_F(ReturnBatch, a_flush_that_ends_early_has_discarded_what_it_worked_off) {
  make(MemoryBacking::kAnonymous, {.wake_bytes_max = 4 * kMiB});
  add_ten();
  uint64_t wakes = 1;
  for (; !pipeline->flush(); ++wakes) {
    EXPECT_EQ(counters().freed, wakes * 4 * kMiB);
    for (uint64_t i = 0; i < kTen; ++i)
      ASSERT_TRUE(reads(i * 4 * kMiB, 2 * kMiB, i < wakes * 2 ? 0 : 0xaa)) << wakes << " " << i;
  }
  EXPECT_EQ(wakes, 5u);
  EXPECT_EQ(ops.together, std::vector<size_t>(5, 2));
  expect_ten_forgotten();
}

TEST_F(ReturnBatch, a_call_has_a_bounded_number_of_ranges) {
  make();
  fill(*memory, kBase, kSize, 0xaa);
  for (size_t i = 0; i < ReturnPipeline::kRangesMax; ++i) add(2 * i * kPage, kPage);
  pipeline->flush_all();
  EXPECT_EQ(std::accumulate(ops.together.begin(), ops.together.end(), size_t{0}) + ops.alone.size(),
            ReturnPipeline::kRangesMax);
  EXPECT_EQ(*std::ranges::max_element(ops.together), ReturnPipeline::kBatchParts);
  EXPECT_EQ(counters().freed, ReturnPipeline::kRangesMax * kPage);
  for (size_t i = 0; i < ReturnPipeline::kRangesMax; ++i) {
    ASSERT_TRUE(reads(2 * i * kPage, kPage, 0)) << i;
    ASSERT_TRUE(reads((2 * i + 1) * kPage, kPage, 0xaa)) << i;
  }
}

// A call can't be interrupted: with a slow host a wake-up ends after the one that took too long.
TEST_F(ReturnBatch, a_slow_host_ends_a_wake_up_after_one_call_of_bounded_size) {
  constexpr uint64_t kLarge = kGiB;
  make(MemoryBacking::kAnonymous, {.wake_time_max = std::chrono::milliseconds(5)}, kLarge);
  uint64_t calls = 0;
  ops.before_all = [&](std::span<const iovec> ranges) {
    ++calls;
    uint64_t bytes = 0;
    for (const iovec& range : ranges) bytes += range.iov_len;
    EXPECT_LT(bytes, ReturnPipeline::kBatchBytes + ReturnPipeline::kPieceBytes);
    std::this_thread::sleep_for(std::chrono::milliseconds(6));
  };
  add(kPage, kLarge - kPage);  // untouched: nothing but the calls takes time
  uint64_t wakes = 1;
  for (; !pipeline->flush(); ++wakes) EXPECT_LE(calls, wakes);
  EXPECT_GE(calls + ops.alone.size(),
            kLarge / (ReturnPipeline::kBatchBytes + ReturnPipeline::kPieceBytes));
  EXPECT_LE(calls, wakes);
  EXPECT_EQ(counters().budget_ends, wakes - 1);
  EXPECT_EQ(counters().absent, kLarge - kPage);
}

TEST_F(ReturnBatch, parts_that_the_pool_does_not_take_are_discarded_together) {
  FakeTaker taker;
  taker.room = 3;
  make(MemoryBacking::kAnonymous, {.taker = &taker});
  pipeline->set_policy(ReturnPolicy::kPool);
  fill(*memory, kBase, kSize, 0xaa);
  add(kMiB, 3 * kMiB);               // half a chunk, a taken one
  add(5 * kMiB, 4 * kMiB);           // half, taken, half
  add(12 * kMiB, 6 * kMiB + kPage);  // taken, two, a page
  ASSERT_TRUE(pipeline->flush());
  EXPECT_EQ(ops.together, std::vector<size_t>{4});
  EXPECT_EQ(counters().moved, 6 * kMiB);
  EXPECT_EQ(counters().freed, 7 * kMiB + kPage);
  EXPECT_TRUE(reads(kMiB, 3 * kMiB, 0));
  EXPECT_TRUE(reads(5 * kMiB, 4 * kMiB, 0));
  EXPECT_TRUE(reads(12 * kMiB, 6 * kMiB + kPage, 0));
  for (const uint64_t kept : {uint64_t{0}, 4 * kMiB, 9 * kMiB, 18 * kMiB + kPage})
    EXPECT_TRUE(reads(kept, kMiB, 0xaa)) << kept;
}

// What is overwritten at once, since nothing brings its poison back, beside what is discarded.
TEST_F(ReturnBatch, holds_only_what_is_discarded) {
  make();
  pipeline->set_poison(0x55555555);
  fill(*memory, kBase, kSize, 0xaa);
  for (uint64_t i = 0; i < 6; ++i)
    add(i * 4 * kMiB, 2 * kMiB, i % 2 == 0 ? kReport : ReturnSource::kInflate);
  ASSERT_TRUE(pipeline->flush());
  EXPECT_EQ(ops.together, std::vector<size_t>{3});
  for (uint64_t i = 0; i < 6; ++i)
    EXPECT_TRUE(reads(i * 4 * kMiB, 2 * kMiB, i % 2 == 0 ? 0x55 : 0)) << i;
  EXPECT_EQ(counters().freed, 6 * kMiB);
  EXPECT_EQ(counters().overwritten, 6 * kMiB);
}

TEST_F(ReturnBatch, files_are_given_back_by_holes) {
  const HugePages pages(kSize / kChunkBytes);
  for (const auto backing : {MemoryBacking::kShared, MemoryBacking::kHugetlb}) {
    if (backing == MemoryBacking::kHugetlb && pages.got() == 0) {
      std::puts("not with huge pages: the host gives none (nr_hugepages)");
      continue;
    }
    make(backing);
    add_ten();
    ASSERT_TRUE(pipeline->flush());
    EXPECT_TRUE(ops.together.empty());
    EXPECT_TRUE(ops.alone.empty());
    EXPECT_EQ(counters().freed, kTen * 2 * kMiB);
    EXPECT_EQ(file_bytes(*memory, kBase), kSize - kTen * 2 * kMiB);
    expect_ten_forgotten();
  }
}

TEST_F(ReturnBatch, splits_huge_pages_before_it_frees_their_parts) {
  make();
  fill(*memory, kBase, kSize, 0xaa);
  const uint64_t before = smaps_bytes(host(0), "AnonHugePages");
  if (before < kSize) GTEST_SKIP() << "the host gave no huge pages";
  for (uint64_t i = 0; i < 4; ++i) add(i * 4 * kMiB + kMiB, kPage, ReturnSource::kInflate);
  ASSERT_TRUE(pipeline->flush());
  EXPECT_EQ(ops.together, std::vector<size_t>{4});
  EXPECT_EQ(smaps_bytes(host(0), "AnonHugePages"), before - 4 * kChunkBytes);
  EXPECT_EQ(smaps_bytes(host(0), "Rss"), kSize - 4 * kPage);
}

// The system's own call, under guest threads that go on using what they did not give away.
TEST(ReturnBatchOnThisKernel, forgets_ranges_beside_memory_in_use) {
  constexpr uint64_t kRanges = 64;
  const GuestMemory::Range range{.start = GuestAddr{kBase}, .size = kSize};
  const auto memory = GuestMemory::create({&range, 1}, {}).value();
  ReturnPipeline pipeline(*memory);
  uint8_t* const host = host_of(*memory, kBase);
  std::atomic<bool> stop{false};
  // Every other page belongs to the other thread.
  std::thread guest([&] {
    for (uint8_t value = 1; !stop; ++value)
      for (uint64_t i = 0; i < kRanges; ++i) {
        uint8_t* const page = host + (2 * i + 1) * kPage;
        page[0] = value;
        if (page[0] != value) std::abort();
      }
  });
  for (int round = 0; round < 200; ++round) {
    for (uint64_t i = 0; i < kRanges; ++i) {
      std::memset(host + 2 * i * kPage, 0xaa, kPage);
      ASSERT_EQ(pipeline.add(GuestAddr{kBase + 2 * i * kPage}, kPage, kReport), Added::kTaken);
    }
    pipeline.flush_all();
    pipeline.given_back(kRanges * kPage);
    for (uint64_t i = 0; i < kRanges; ++i)
      ASSERT_TRUE(all_bytes_are(*memory, kBase + 2 * i * kPage, kPage, 0)) << round << " " << i;
  }
  stop = true;
  guest.join();
  const ReturnCounters& c = pipeline.counters();
  EXPECT_EQ(c.freed + c.absent, 200 * kRanges * kPage);
  EXPECT_EQ(c.host_failures, 0u);
}

}  // namespace
}  // namespace lethe
