// Each policy on each backing: that the content is forgotten, and that the host really gets back
// what the counters say.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <optional>

#include "memory/return_test_util.h"

namespace lethe {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kBase = 64 * kMiB;
constexpr GuestMemory::Range kRange{.start = GuestAddr{kBase}, .size = 32 * kMiB};

struct Machine {
  explicit Machine(MemoryBacking backing, ReturnPolicy policy, ReturnPipelineOptions options = {},
                   bool thp = true)
      : memory(GuestMemory::create({&kRange, 1}, {.backing = backing, .thp = thp}).value()),
        pipeline(*memory, std::move(options)),
        host(host_of(*memory, kBase)) {
    pipeline.set_policy(policy);
    fill(*memory, kBase, kRange.size, 0xaa);
  }
  // As a guest with one report would.
  void give(uint64_t offset, uint64_t bytes, ReturnSource source = ReturnSource::kReport) {
    ASSERT_EQ(pipeline.add(GuestAddr{kBase + offset}, bytes, source),
              ReturnPipeline::Added::kTaken);
    pipeline.flush_all();
    pipeline.given_back(bytes);
  }
  [[nodiscard]] bool reads(uint64_t offset, uint64_t bytes, uint8_t value) const {
    return all_bytes_are(*memory, kBase + offset, bytes, value);
  }
  [[nodiscard]] const ReturnCounters& counters() const { return pipeline.counters(); }
  [[nodiscard]] uint64_t resident() const { return resident_bytes(host, kRange.size); }

  std::unique_ptr<GuestMemory> memory;
  ReturnPipeline pipeline;
  uint8_t* host;
};

TEST(ReturnPolicyDiscard, frees_anonymous_memory) {
  for (const bool thp : {true, false}) {
    Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kDiscard, {}, thp);
    ASSERT_EQ(machine.resident(), kRange.size);
    const uint64_t rss = smaps_bytes(machine.host, "Rss");
    machine.give(2 * kMiB, 20 * kMiB);
    EXPECT_EQ(machine.counters().freed, 20 * kMiB);
    EXPECT_EQ(machine.resident(), 12 * kMiB);
    EXPECT_EQ(smaps_bytes(machine.host, "Rss"), rss - 20 * kMiB);
    EXPECT_TRUE(machine.reads(2 * kMiB, 20 * kMiB, 0));
    EXPECT_TRUE(machine.reads(0, 2 * kMiB, 0xaa));
    EXPECT_TRUE(machine.reads(22 * kMiB, 10 * kMiB, 0xaa));
  }
}

// MADV_DONTNEED alone frees nothing of a memory file.
TEST(ReturnPolicyDiscard, frees_shared_memory_in_its_file) {
  Machine machine(MemoryBacking::kShared, ReturnPolicy::kDiscard);
  ASSERT_EQ(file_bytes(*machine.memory, kBase), kRange.size);
  machine.give(2 * kMiB + kPage, 20 * kMiB);
  EXPECT_EQ(machine.counters().freed, 20 * kMiB);
  EXPECT_EQ(file_bytes(*machine.memory, kBase), 12 * kMiB);
  EXPECT_TRUE(machine.reads(2 * kMiB + kPage, 20 * kMiB, 0));
  EXPECT_TRUE(machine.reads(0, 2 * kMiB + kPage, 0xaa));
}

TEST(ReturnPolicyDiscard, frees_whole_huge_pages_and_overwrites_parts) {
  const HugePages pages(kRange.size / kChunkBytes);
  if (pages.got() == 0) GTEST_SKIP() << "the host gives no 2 MiB huge pages (nr_hugepages)";
  Machine machine(MemoryBacking::kHugetlb, ReturnPolicy::kDiscard);
  ASSERT_EQ(file_bytes(*machine.memory, kBase), kRange.size);
  machine.give(kMiB, 6 * kMiB);  // half a page, two whole ones, half a page
  EXPECT_EQ(machine.counters().freed, 4 * kMiB);
  EXPECT_EQ(machine.counters().overwritten, 2 * kMiB);
  EXPECT_EQ(file_bytes(*machine.memory, kBase), kRange.size - 4 * kMiB);
  EXPECT_TRUE(machine.reads(kMiB, 6 * kMiB, 0));
  EXPECT_TRUE(machine.reads(0, kMiB, 0xaa));
  EXPECT_TRUE(machine.reads(7 * kMiB, kMiB, 0xaa));
  // A part of a page that is not there brings it back for nothing.
  Machine again(MemoryBacking::kShared, ReturnPolicy::kDiscard);
  again.give(0, 2 * kMiB);
  again.give(kMiB, kPage);
  EXPECT_EQ(file_bytes(*again.memory, kBase), kRange.size - 2 * kMiB);
}

TEST(ReturnPolicyDiscard, a_part_of_an_absent_huge_page_gains_no_memory) {
  const HugePages pages(kRange.size / kChunkBytes);
  if (pages.got() == 0) GTEST_SKIP() << "the host gives no 2 MiB huge pages (nr_hugepages)";
  Machine machine(MemoryBacking::kHugetlb, ReturnPolicy::kDiscard);
  machine.give(0, 2 * kMiB);
  machine.give(kMiB, kPage);
  EXPECT_EQ(file_bytes(*machine.memory, kBase), kRange.size - 2 * kMiB);
}

TEST(ReturnPolicyLazy, marks_anonymous_memory_and_leaves_it_readable) {
  Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kLazy);
  machine.give(2 * kMiB, 4 * kMiB);
  EXPECT_EQ(machine.counters().lazy, 4 * kMiB);
  EXPECT_EQ(machine.counters().freed, 0u);
  EXPECT_EQ(smaps_bytes(machine.host, "LazyFree"), 4 * kMiB);
  EXPECT_EQ(machine.resident(), kRange.size);
}

// Memory files, which can be neither moved nor marked.
class ReturnToFiles : public testing::TestWithParam<MemoryBacking> {
 protected:
  void SetUp() override {
    if (GetParam() != MemoryBacking::kHugetlb) return;
    pages.emplace(kRange.size / kChunkBytes);
    if (pages->got() == 0) GTEST_SKIP() << "the host gives no 2 MiB huge pages (nr_hugepages)";
  }
  std::optional<HugePages> pages;
};
INSTANTIATE_TEST_SUITE_P(Backings, ReturnToFiles,
                         testing::Values(MemoryBacking::kShared, MemoryBacking::kHugetlb),
                         [](const auto& info) {
                           return info.param == MemoryBacking::kShared ? "shared" : "hugetlb";
                         });

TEST_P(ReturnToFiles, lazy_discards) {
  Machine machine(GetParam(), ReturnPolicy::kLazy);
  machine.give(2 * kMiB, 4 * kMiB);
  EXPECT_EQ(machine.counters().lazy, 0u);
  EXPECT_EQ(machine.counters().freed, 4 * kMiB);
  EXPECT_EQ(file_bytes(*machine.memory, kBase), kRange.size - 4 * kMiB);
  EXPECT_TRUE(machine.reads(2 * kMiB, 4 * kMiB, 0));
}

TEST_P(ReturnToFiles, pool_discards) {
  FakeTaker taker;
  Machine machine(GetParam(), ReturnPolicy::kPool, {.taker = &taker});
  machine.give(2 * kMiB, 4 * kMiB);
  EXPECT_EQ(taker.asked, 0u);
  EXPECT_EQ(machine.counters().moved, 0u);
  EXPECT_EQ(machine.counters().freed, 4 * kMiB);
  EXPECT_EQ(file_bytes(*machine.memory, kBase), kRange.size - 4 * kMiB);
  EXPECT_TRUE(machine.reads(2 * kMiB, 4 * kMiB, 0));
}

TEST(ReturnPolicyPool, gives_whole_chunks_to_the_taker_and_discards_the_rest) {
  FakeTaker taker;
  taker.room = 3;
  Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kPool, {.taker = &taker});
  // Half a chunk, five chunks, a page: three are taken, two and the ends are discarded.
  machine.give(kMiB, 11 * kMiB + kPage);
  EXPECT_EQ(taker.asked, 5u);
  EXPECT_EQ(machine.counters().moved, 6 * kMiB);
  EXPECT_EQ(machine.counters().freed, 5 * kMiB + kPage);
  EXPECT_TRUE(machine.reads(kMiB, 11 * kMiB + kPage, 0));
  EXPECT_TRUE(machine.reads(0, kMiB, 0xaa));
  EXPECT_TRUE(machine.reads(12 * kMiB + kPage, kMiB, 0xaa));
}

// The host asks by balloon and hints because it wants the memory.
TEST(ReturnPolicyPool, keeps_nothing_that_the_host_asked_for) {
  FakeTaker taker;
  Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kPool, {.taker = &taker});
  machine.give(0, 4 * kMiB, ReturnSource::kInflate);
  machine.give(4 * kMiB, 4 * kMiB, ReturnSource::kHint);
  EXPECT_EQ(taker.asked, 0u);
  EXPECT_EQ(machine.counters().freed, 8 * kMiB);
}

// What the page at `host` is: bits of /proc/kpageflags. Nothing without the rights to read it.
std::optional<uint64_t> page_flags(const uint8_t* host) {
  constexpr uint64_t kPfnMask = (uint64_t{1} << 55) - 1;
  uint64_t entry = 0;
  uint64_t flags = 0;
  const UniqueFd map(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const UniqueFd table(::open("/proc/kpageflags", O_RDONLY | O_CLOEXEC));
  const auto at = static_cast<off_t>(reinterpret_cast<uintptr_t>(host) / kPage * sizeof entry);
  if (!map.valid() || !table.valid()) return std::nullopt;
  if (::pread(map.get(), &entry, sizeof entry, at) != sizeof entry || (entry & kPfnMask) == 0)
    return std::nullopt;
  const auto where = static_cast<off_t>((entry & kPfnMask) * sizeof flags);
  if (::pread(table.get(), &flags, sizeof flags, where) != sizeof flags) return std::nullopt;
  return flags;
}
constexpr uint64_t kCompound = uint64_t{3} << 15;  // KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL

// MADV_DONTNEED of a part unmaps it and keeps the huge page; a page of 4 KiB comes back only if the
// huge page is split.
TEST(ReturnPolicyDiscard, splits_a_huge_page_that_it_frees_a_part_of) {
  Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kDiscard);
  const auto before = page_flags(machine.host + kPage);
  if (!before) GTEST_SKIP() << "/proc/kpageflags can't be read here (it needs root)";
  if ((*before & kCompound) == 0) GTEST_SKIP() << "the host gave no huge page";
  machine.give(0, kPage, ReturnSource::kInflate);                 // at the front
  machine.give(3 * kMiB, 4 * kPage, ReturnSource::kInflate);      // in the middle
  machine.give(6 * kMiB - kPage, kPage, ReturnSource::kInflate);  // at the end
  machine.give(9 * kMiB, 2 * kMiB, ReturnSource::kInflate);       // two halves
  for (const uint64_t rest : {kPage, 2 * kMiB, 4 * kMiB, 8 * kMiB, 11 * kMiB})
    EXPECT_EQ(page_flags(machine.host + rest).value_or(kCompound) & kCompound, 0u) << rest;
  EXPECT_NE(page_flags(machine.host + 12 * kMiB).value_or(0) & kCompound, 0u);
  EXPECT_EQ(machine.counters().freed, 2 * kMiB + 6 * kPage);
  EXPECT_EQ(machine.resident(), kRange.size - 2 * kMiB - 6 * kPage);
}

// --- poison (virtio 1.2, 5.5.6.6 and 5.5.6.7)

TEST(ReturnPoison, a_report_reads_as_the_value_afterwards) {
  for (const auto policy : {ReturnPolicy::kDiscard, ReturnPolicy::kLazy, ReturnPolicy::kPool}) {
    Machine machine(MemoryBacking::kAnonymous, policy);
    machine.pipeline.set_poison(0x55555555);
    machine.give(kMiB, 4 * kMiB);
    EXPECT_TRUE(machine.reads(kMiB, 4 * kMiB, 0x55));
    EXPECT_TRUE(machine.reads(0, kMiB, 0xaa));
    EXPECT_EQ(machine.counters().overwritten, 4 * kMiB);
    EXPECT_EQ(machine.counters().freed, 0u);
  }
}

TEST(ReturnPoison, all_four_bytes_of_the_value_count) {
  Machine machine(MemoryBacking::kShared, ReturnPolicy::kDiscard);
  machine.pipeline.set_poison(0x04030201);
  machine.give(0, 2 * kPage);
  for (uint64_t i = 0; i < 2 * kPage; ++i) ASSERT_EQ(machine.host[i], 1 + i % 4);
}

TEST(ReturnPoison, inflated_and_hinted_pages_are_really_freed) {
  Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kDiscard);
  machine.pipeline.set_poison(0x55555555);
  machine.give(0, 2 * kMiB, ReturnSource::kInflate);
  machine.give(2 * kMiB, 2 * kMiB, ReturnSource::kHint);
  EXPECT_EQ(machine.counters().freed, 4 * kMiB);
}

TEST(ReturnPoison, is_for_every_byte_of_a_report_that_overlaps_an_inflated_range) {
  Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kDiscard);
  machine.pipeline.set_poison(0x55555555);
  ASSERT_EQ(machine.pipeline.add(GuestAddr{kBase}, 4 * kPage, ReturnSource::kInflate),
            ReturnPipeline::Added::kTaken);
  ASSERT_EQ(machine.pipeline.add(GuestAddr{kBase + 2 * kPage}, 4 * kPage, ReturnSource::kReport),
            ReturnPipeline::Added::kTaken);
  ASSERT_EQ(machine.pipeline.add(GuestAddr{kBase + 6 * kPage}, kPage, ReturnSource::kInflate),
            ReturnPipeline::Added::kTaken);
  machine.pipeline.flush_all();
  EXPECT_TRUE(machine.reads(2 * kPage, 4 * kPage, 0x55));
  EXPECT_TRUE(machine.reads(6 * kPage, kPage, 0));
}

TEST(ReturnPoison, the_pool_is_told_before_anything_is_returned) {
  FakeTaker taker;
  std::vector<uint32_t> told;
  Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kPool,
                  {.taker = &taker, .poison_changed = [&](uint32_t v) { told.push_back(v); }});
  machine.pipeline.set_poison(0);
  EXPECT_TRUE(told.empty());
  machine.pipeline.set_poison(7);
  machine.pipeline.set_poison(7);
  EXPECT_EQ(told, std::vector<uint32_t>{7});
}

// --- a host that refuses

TEST(ReturnHostFailure, content_is_overwritten_when_madvise_fails) {
  FailingOps ops;
  ops.fail_advice = {MADV_DONTNEED, MADV_FREE};
  for (const auto policy : {ReturnPolicy::kDiscard, ReturnPolicy::kLazy}) {
    Machine machine(MemoryBacking::kAnonymous, policy, {.ops = &ops});
    machine.give(kMiB, 2 * kMiB);
    EXPECT_TRUE(machine.reads(kMiB, 2 * kMiB, 0));
    EXPECT_TRUE(machine.reads(0, kMiB, 0xaa));
    EXPECT_EQ(machine.counters().overwritten, 2 * kMiB);
    EXPECT_EQ(machine.counters().freed + machine.counters().lazy, 0u);
    EXPECT_GE(machine.counters().host_failures, 1u);
  }
}

TEST(ReturnHostFailure, lazy_discards_when_only_madv_free_fails) {
  FailingOps ops;
  ops.fail_advice = {MADV_FREE};
  Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kLazy, {.ops = &ops});
  machine.give(kMiB, 2 * kMiB);
  EXPECT_TRUE(machine.reads(kMiB, 2 * kMiB, 0));
  EXPECT_EQ(machine.counters().freed, 2 * kMiB);
  EXPECT_EQ(machine.counters().host_failures, 1u);
}

TEST(ReturnHostFailure, content_is_overwritten_when_fallocate_fails) {
  FailingOps ops;
  ops.fail_punch = true;
  Machine machine(MemoryBacking::kShared, ReturnPolicy::kDiscard, {.ops = &ops});
  machine.give(kMiB, 2 * kMiB);
  EXPECT_TRUE(machine.reads(kMiB, 2 * kMiB, 0));
  EXPECT_EQ(machine.counters().overwritten, 2 * kMiB);
  EXPECT_EQ(machine.counters().freed, 0u);
  EXPECT_EQ(file_bytes(*machine.memory, kBase), kRange.size);
}

TEST(ReturnHostFailure, without_mincore_only_the_counters_suffer) {
  FailingOps ops;
  ops.fail_resident = true;
  Machine machine(MemoryBacking::kAnonymous, ReturnPolicy::kDiscard, {.ops = &ops});
  machine.give(0, 2 * kMiB);
  EXPECT_EQ(machine.resident(), kRange.size - 2 * kMiB);
  EXPECT_TRUE(machine.reads(0, 2 * kMiB, 0));
}

}  // namespace
}  // namespace lethe
