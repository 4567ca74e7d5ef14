#include "memory/return_pipeline.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <thread>

#include "memory/return_test_util.h"

namespace lethe {
namespace {

using Added = ReturnPipeline::Added;
constexpr auto kReport = ReturnSource::kReport;
constexpr uint64_t kPage = 4096;

// Two regions that touch neither each other nor 0, and device memory between them.
constexpr GuestMemory::Range kRanges[] = {
    {.start = GuestAddr{16 * kMiB}, .size = 32 * kMiB},
    {.start = GuestAddr{64 * kMiB}, .size = 96 * kMiB},
};

class ReturnTest : public testing::Test {
 protected:
  void make(MemoryBacking backing = MemoryBacking::kAnonymous, ReturnPipelineOptions options = {}) {
    memory = GuestMemory::create(kRanges, {.backing = backing}).value();
    pipeline = std::make_unique<ReturnPipeline>(*memory, std::move(options));
  }
  Added add(uint64_t start, uint64_t bytes, ReturnSource source = kReport) {
    return pipeline->add(GuestAddr{start}, bytes, source);
  }
  // Adds one range and forgets it.
  void give(uint64_t start, uint64_t bytes, ReturnSource source = kReport) {
    ASSERT_EQ(add(start, bytes, source), Added::kTaken);
    pipeline->flush_all();
    pipeline->given_back(bytes);
  }
  [[nodiscard]] const ReturnCounters& counters() const { return pipeline->counters(); }

  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<ReturnPipeline> pipeline;
};

TEST_F(ReturnTest, forgets_a_range_and_nothing_beside_it) {
  make();
  fill(*memory, 16 * kMiB, 4 * kMiB, 0xaa);
  give(17 * kMiB, 1 * kMiB);
  EXPECT_TRUE(all_bytes_are(*memory, 17 * kMiB, kMiB, 0));
  EXPECT_TRUE(all_bytes_are(*memory, 16 * kMiB, kMiB, 0xaa));
  EXPECT_TRUE(all_bytes_are(*memory, 18 * kMiB, 2 * kMiB, 0xaa));
  EXPECT_EQ(counters().freed, kMiB);
}

TEST_F(ReturnTest, refuses_what_is_not_whole_pages_of_one_region) {
  make();
  std::vector<uint8_t> device(kMiB, 0xdd);
  alignas(4096) static uint8_t device_memory[16 * kPage];
  std::fill(std::begin(device_memory), std::end(device_memory), uint8_t{0xdd});
  ASSERT_TRUE(memory->add_region(GuestAddr{56 * kMiB}, sizeof device_memory, device_memory));
  pipeline = std::make_unique<ReturnPipeline>(*memory);
  const struct {
    uint64_t start, bytes;
  } bad[] = {
      {0, kPage},                           // below memory
      {16 * kMiB - kPage, 2 * kPage},       // from below into it
      {48 * kMiB - kPage, 2 * kPage},       // beyond the region's end
      {48 * kMiB, kPage},                   // right after it
      {32 * kMiB, 64 * kMiB},               // across regions
      {160 * kMiB, kPage},                  // above memory
      {64 * kMiB, 4 * kGiB},                // far beyond
      {UINT64_MAX - kPage + 1, kPage},      // ends at 2^64
      {UINT64_MAX - kPage + 1, 4 * kPage},  // overflows
      {64 * kMiB, UINT64_MAX - kPage + 1},  // overflows too
      {64 * kMiB + 1, kPage},               // unaligned
      {64 * kMiB, kPage + 1},               // not whole pages
      {64 * kMiB, 1},
      {64 * kMiB, 0},  // empty
      {0, 0},
      {56 * kMiB, kPage},     // device memory
      {55 * kMiB, 2 * kMiB},  // around it
  };
  fill(*memory, 16 * kMiB, 32 * kMiB, 0xaa);
  for (const auto& range : bad) {
    EXPECT_EQ(add(range.start, range.bytes), Added::kRefused) << range.start << " " << range.bytes;
    EXPECT_FALSE(pipeline->valid(GuestAddr{range.start}, range.bytes));
  }
  EXPECT_TRUE(pipeline->flush());
  EXPECT_EQ(counters().refused[1], std::size(bad));
  EXPECT_EQ(counters().taken[1], 0u);
  EXPECT_EQ(counters().isolated_highest, 0u);
  EXPECT_TRUE(all_bytes_are(*memory, 16 * kMiB, 32 * kMiB, 0xaa));
  EXPECT_TRUE(std::ranges::all_of(device_memory, [](uint8_t byte) { return byte == 0xdd; }));
}

TEST_F(ReturnTest, works_a_range_of_4_gib_in_pieces) {
  constexpr GuestMemory::Range kLarge{.start = GuestAddr{4 * kGiB}, .size = 6 * kGiB};
  memory = GuestMemory::create({&kLarge, 1}, {}).value();
  // A wake-up does one piece.
  pipeline = std::make_unique<ReturnPipeline>(
      *memory, ReturnPipelineOptions{.wake_bytes_max = ReturnPipeline::kPieceBytes});
  for (uint64_t at = 4 * kGiB; at < 10 * kGiB; at += 512 * kMiB) fill(*memory, at, kPage, 0xaa);
  ASSERT_EQ(add(5 * kGiB, 4 * kGiB), Added::kTaken);
  EXPECT_EQ(add(4 * kGiB, kPage), Added::kFull);
  uint64_t wakes = 1;
  while (!pipeline->flush()) {
    EXPECT_EQ(add(4 * kGiB, kPage), Added::kFull);
    ++wakes;
  }
  EXPECT_EQ(wakes, 4 * kGiB / ReturnPipeline::kPieceBytes);
  EXPECT_EQ(counters().budget_ends, wakes - 1);
  for (uint64_t at = 4 * kGiB; at < 10 * kGiB; at += 512 * kMiB) {
    const bool returned = at >= 5 * kGiB && at < 9 * kGiB;
    EXPECT_TRUE(all_bytes_are(*memory, at, kPage, returned ? 0 : 0xaa)) << at;
  }
  EXPECT_EQ(counters().taken[1], 4 * kGiB);
  EXPECT_EQ(counters().freed + counters().absent, 4 * kGiB);
}

TEST_F(ReturnTest, merges_what_touches_and_counts_what_overlaps_once) {
  make();
  fill(*memory, 64 * kMiB, 32 * kMiB, 0xaa);
  // Out of order, twice, overlapping, and a run.
  const struct {
    uint64_t at, pages;
  } ranges[] = {{80, 4}, {64, 2}, {66, 2}, {65, 3}, {64, 1}, {82, 8}, {80, 4}, {100, 1}};
  for (const auto& range : ranges)
    ASSERT_EQ(add(64 * kMiB + range.at * kPage, range.pages * kPage), Added::kTaken);
  pipeline->flush_all();
  EXPECT_EQ(counters().ranges, 8u);
  EXPECT_EQ(counters().merged, 5u);  // 64..68, 80..90, 100 remain
  EXPECT_EQ(counters().repeated, (25 - 15) * kPage);
  EXPECT_EQ(counters().freed, 15 * kPage);
  EXPECT_EQ(counters().taken[1], 25 * kPage);
  for (uint64_t page = 60; page < 110; ++page) {
    const bool returned = (page >= 64 && page < 68) || (page >= 80 && page < 90) || page == 100;
    EXPECT_TRUE(all_bytes_are(*memory, 64 * kMiB + page * kPage, kPage, returned ? 0 : 0xaa));
  }
}

TEST_F(ReturnTest, does_not_merge_across_regions_that_touch_in_the_guest) {
  constexpr GuestMemory::Range kTouching[] = {{.start = GuestAddr{0}, .size = 4 * kMiB},
                                              {.start = GuestAddr{4 * kMiB}, .size = 4 * kMiB}};
  memory = GuestMemory::create(kTouching, {.backing = MemoryBacking::kShared}).value();
  pipeline = std::make_unique<ReturnPipeline>(*memory);
  fill(*memory, 0, 4 * kMiB, 0xaa);
  fill(*memory, 4 * kMiB, 4 * kMiB, 0xaa);
  ASSERT_EQ(add(4 * kMiB - kPage, kPage), Added::kTaken);
  ASSERT_EQ(add(4 * kMiB, kPage), Added::kTaken);
  EXPECT_EQ(add(4 * kMiB - kPage, 2 * kPage), Added::kRefused);
  pipeline->flush_all();
  EXPECT_EQ(counters().merged, 0u);
  EXPECT_EQ(counters().freed, 2 * kPage);
  EXPECT_TRUE(all_bytes_are(*memory, 4 * kMiB - kPage, kPage, 0));
  EXPECT_TRUE(all_bytes_are(*memory, 4 * kMiB, kPage, 0));
  EXPECT_TRUE(all_bytes_are(*memory, 4 * kMiB + kPage, kPage, 0xaa));
}

TEST_F(ReturnTest, counts_what_was_there_and_not_what_was_asked_for) {
  make();
  fill(*memory, 64 * kMiB, 2 * kMiB, 0xaa);
  give(64 * kMiB, 8 * kMiB);
  EXPECT_EQ(counters().freed, 2 * kMiB);
  EXPECT_EQ(counters().absent, 6 * kMiB);
  give(64 * kMiB, 8 * kMiB);
  EXPECT_EQ(counters().freed, 2 * kMiB);
  EXPECT_EQ(counters().absent, 14 * kMiB);
}

TEST_F(ReturnTest, takes_no_more_than_the_bound_before_a_flush) {
  make(MemoryBacking::kAnonymous, {.isolated_max = 4 * kMiB});
  EXPECT_EQ(add(64 * kMiB, 3 * kMiB), Added::kTaken);
  EXPECT_EQ(add(80 * kMiB, 2 * kMiB), Added::kFull);
  EXPECT_EQ(add(80 * kMiB, 1 * kMiB), Added::kTaken);
  EXPECT_EQ(add(90 * kMiB, kPage), Added::kFull);
  EXPECT_EQ(counters().isolated, 4 * kMiB);
  EXPECT_TRUE(pipeline->flush());
  EXPECT_EQ(counters().isolated, 4 * kMiB) << "the guest has not got it back yet";
  pipeline->given_back(4 * kMiB);
  EXPECT_EQ(counters().isolated, 0u);
  // One range that is larger than the bound is taken alone.
  EXPECT_EQ(add(64 * kMiB, 8 * kMiB), Added::kTaken);
  EXPECT_EQ(add(80 * kMiB, kPage), Added::kFull);
  EXPECT_EQ(counters().isolated_highest, 8 * kMiB);
}

TEST_F(ReturnTest, holds_a_fixed_number_of_ranges) {
  make();
  for (size_t i = 0; i < ReturnPipeline::kRangesMax; ++i)
    ASSERT_EQ(add(64 * kMiB + 2 * i * kPage, kPage), Added::kTaken);
  EXPECT_EQ(add(64 * kMiB + 2 * ReturnPipeline::kRangesMax * kPage, kPage), Added::kFull);
  pipeline->flush_all();
  EXPECT_EQ(add(64 * kMiB, kPage), Added::kTaken);
}

TEST_F(ReturnTest, the_policy_may_change_at_any_time_from_any_thread) {
  FakeTaker taker;
  make(MemoryBacking::kAnonymous, {.taker = &taker});
  std::atomic<bool> stop{false};
  std::thread governor([&] {
    while (!stop)
      for (const auto policy : {ReturnPolicy::kPool, ReturnPolicy::kDiscard})
        pipeline->set_policy(policy);
  });
  for (int round = 0; round < 200; ++round) {
    fill(*memory, 64 * kMiB, 4 * kMiB, 0xaa);
    give(64 * kMiB + kPage, 4 * kMiB - 2 * kPage);
    ASSERT_TRUE(all_bytes_are(*memory, 64 * kMiB + kPage, 4 * kMiB - 2 * kPage, 0));
    ASSERT_TRUE(all_bytes_are(*memory, 64 * kMiB, kPage, 0xaa));
  }
  stop = true;
  governor.join();
}

TEST_F(ReturnTest, measures_the_time_to_forget) {
  make();
  give(64 * kMiB, 2 * kMiB);
  const auto latency = pipeline->forget_latency();
  EXPECT_EQ(latency.count, 1u);
  EXPECT_GT(latency.max_ns, 0u);
  EXPECT_LT(latency.max_ns, 5'000'000'000u);
}

// --- against a model: which pages still have their content, over any ranges in any order

RC_GTEST_PROP(ReturnProperty, forgets_exactly_what_it_took, ()) {
  constexpr uint64_t kPages = 2048;  // 8 MiB in two regions
  constexpr GuestMemory::Range kTwo[] = {{.start = GuestAddr{kMiB}, .size = 5 * kMiB},
                                         {.start = GuestAddr{7 * kMiB}, .size = 3 * kMiB}};
  const auto memory = GuestMemory::create(kTwo, {}).value();
  FakeTaker taker;
  taker.room = *rc::gen::inRange<uint64_t>(0, 4);
  // A host that does a few ranges of a call, or none, and refuses some pages at any time.
  FailingOps ops;
  ops.together_max = *rc::gen::element<size_t>(0, 1, 2, 5, SIZE_MAX);
  for (const uint64_t page :
       *rc::gen::container<std::set<uint64_t>>(rc::gen::inRange<uint64_t>(256, 1536)))
    if (page % 4 == 0) ops.fail_at.insert(host_of(*memory, page * kPage));
  MemoryOps* const host = *rc::gen::arbitrary<bool>() ? &ops : nullptr;
  ReturnPipeline pipeline(*memory, {.isolated_max = 3 * kMiB, .taker = &taker, .ops = host});
  const auto in_memory = [](uint64_t page) {
    return (page >= 256 && page < 1536) || (page >= 1792 && page < 2560);
  };
  std::vector<bool> kept(kPages + 1024, false);
  for (uint64_t page = 0; page < kept.size(); ++page) {
    if (!in_memory(page)) continue;
    fill(*memory, page * kPage, kPage, 0xaa);
    kept[page] = true;
  }
  uint64_t taken = 0;
  const auto count = *rc::gen::inRange(1, 40);
  for (int i = 0; i < count; ++i) {
    const auto policy = *rc::gen::element(ReturnPolicy::kPool, ReturnPolicy::kDiscard);
    pipeline.set_policy(policy);
    const auto start = *rc::gen::inRange<uint64_t>(0, kPages + 600);
    const auto pages =
        *rc::gen::oneOf(rc::gen::inRange<uint64_t>(1, 8), rc::gen::inRange<uint64_t>(1, 1300));
    auto added = pipeline.add(GuestAddr{start * kPage}, pages * kPage, kReport);
    if (added == Added::kFull) {
      pipeline.flush_all();
      added = pipeline.add(GuestAddr{start * kPage}, pages * kPage, kReport);
    }
    const bool valid =
        (start >= 256 && start + pages <= 1536) || (start >= 1792 && start + pages <= 2560);
    RC_ASSERT((added == Added::kTaken) == valid);
    if (!valid) continue;
    taken += pages * kPage;
    for (uint64_t page = start; page < start + pages; ++page) kept[page] = false;
  }
  pipeline.flush_all();
  for (uint64_t page = 0; page < kept.size(); ++page) {
    if (in_memory(page))
      RC_ASSERT(all_bytes_are(*memory, page * kPage, kPage, kept[page] ? 0xaa : 0));
  }
  const ReturnCounters& c = pipeline.counters();
  RC_ASSERT(c.taken[1] == taken);
  RC_ASSERT(c.moved + c.freed + c.absent + c.overwritten + c.lazy + c.repeated == taken);
  RC_ASSERT(c.moved == taker.taken * kChunkBytes);
}

}  // namespace
}  // namespace lethe
