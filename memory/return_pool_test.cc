// The return pipeline with the real scrub pool.
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <atomic>

#include "memory/memory_ops.h"
#include "memory/pool_ops.h"
#include "memory/return_pipeline.h"
#include "memory/scrub_pool_test_util.h"

namespace lethe {
namespace {

constexpr uint32_t kPoison = 0xDEADBEEF;

bool words_are(const uint8_t* at, uint32_t value, uint64_t size) {
  const auto* const words = reinterpret_cast<const uint32_t*>(at);
  return std::all_of(words, words + size / sizeof value, [&](uint32_t w) { return w == value; });
}

// Where the pool's arena is, by what is moved there. Any thread.
class WatchingOps : public PoolOps {
 public:
  explicit WatchingOps(const GuestMemory& memory)
      : x_guest(host_at_offset(memory, 0)), x_guest_end(x_guest + memory.regions().front().size) {}
  int control(int fd, unsigned long request, void* argument) override {
    constexpr unsigned long kMoveNumber = 0x05;  // UFFDIO_MOVE, Linux 6.8: dst comes first
    if (_IOC_NR(request) == kMoveNumber && _IOC_TYPE(request) == UFFDIO)
      note(*static_cast<uint64_t*>(argument));
    return PoolOps::control(fd, request, argument);
  }
  int remap(uint8_t* from, uint8_t* to, uint64_t size) override {
    note(reinterpret_cast<uintptr_t>(to));
    return PoolOps::remap(from, to, size);
  }
  // What of the arena is resident, from the first slot used to the last.
  [[nodiscard]] uint64_t arena_resident() const {
    if (x_low > x_high) return 0;
    // SAFETY: addresses inside one mapping, which lives as long as the pool; mincore() only looks.
    return resident_bytes(reinterpret_cast<uint8_t*>(x_low.load()), x_high - x_low);
  }
  [[nodiscard]] bool arena_seen() const { return x_low < x_high; }

 private:
  void note(uint64_t to) {
    if (to >= reinterpret_cast<uintptr_t>(x_guest) && to < reinterpret_cast<uintptr_t>(x_guest_end))
      return;
    x_low = std::min(x_low.load(), to);
    x_high = std::max(x_high.load(), to + kChunkBytes);
  }
  const uint8_t* const x_guest;
  const uint8_t* const x_guest_end;
  std::atomic<uint64_t> x_low{UINT64_MAX}, x_high{0};
};

class ReturnPoolTest : public ScrubPoolTest {
 protected:
  void make(uint64_t size, uint64_t pool_bytes_max, ReturnPolicy policy = ReturnPolicy::kPool) {
    memory = make_memory(size);
    ops = std::make_unique<WatchingOps>(*memory);
    auto with = options(pool_bytes_max);
    // The probe moves chunks of its own; this is only for the pool's.
    with.ops = ops.get();
    pool = ScrubPool::create(*memory, with);
    pipeline = std::make_unique<ReturnPipeline>(
        *memory, ReturnPipelineOptions{.taker = pool.get(), .poison_changed = [this](uint32_t v) {
                                         pool->set_poison(v);
                                       }});
    pipeline->set_policy(policy);
  }
  void report(uint64_t offset, uint64_t bytes) const {
    ASSERT_EQ(pipeline->add(GuestAddr{offset}, bytes, ReturnSource::kReport),
              ReturnPipeline::Added::kTaken);
    pipeline->flush_all();
    pipeline->given_back(bytes);
  }
  [[nodiscard]] uint64_t resident(uint64_t offset, uint64_t bytes) const {
    return resident_bytes(host_at_offset(*memory, offset), bytes);
  }

  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<WatchingOps> ops;
  std::unique_ptr<ScrubPool> pool;
  std::unique_ptr<ReturnPipeline> pipeline;
};
INSTANTIATE_TEST_SUITE_P(Movers, ReturnPoolTest,
                         ::testing::Values(ChunkMover::kUserfaultMove, ChunkMover::kMremap),
                         mover_name);

TEST_P(ReturnPoolTest, with_poison_and_no_pool_reported_memory_is_freed_and_reads_as_poison) {
  for (const auto policy : {ReturnPolicy::kPool, ReturnPolicy::kDiscard}) {
    make(128 * kMiB, 0, policy);
    fill(host_at_offset(*memory, 0), 0xAA, 66 * kMiB);
    pipeline->set_poison(kPoison);
    // Chunks, and a part of one.
    report(0, 64 * kMiB);
    report(65 * kMiB, 32 * kKiB);
    EXPECT_EQ(resident(0, 64 * kMiB), 0U);
    EXPECT_EQ(resident(65 * kMiB, 32 * kKiB), 0U);
    EXPECT_EQ(pipeline->counters().freed, 64 * kMiB + 32 * kKiB);
    EXPECT_EQ(pipeline->counters().overwritten, 0U);
    EXPECT_TRUE(words_are(host_at_offset(*memory, 0), kPoison, 64 * kMiB));
    EXPECT_TRUE(words_are(host_at_offset(*memory, 65 * kMiB), kPoison, 32 * kKiB));
    EXPECT_TRUE(all_are(host_at_offset(*memory, 64 * kMiB), 0xAA, kMiB));
    EXPECT_TRUE(all_are(host_at_offset(*memory, 65 * kMiB + 32 * kKiB), 0xAA, kMiB - 32 * kKiB));
    pipeline.reset();
    pool.reset();
  }
}

TEST_P(ReturnPoolTest, with_poison_what_a_full_pool_refuses_is_freed_too) {
  make(16 * kMiB, 4 * kMiB);
  fill(host_at_offset(*memory, 0), 0xAA, 16 * kMiB);
  pipeline->set_poison(kPoison);
  report(0, 16 * kMiB);
  EXPECT_EQ(pipeline->counters().moved, 4 * kMiB);
  EXPECT_EQ(pipeline->counters().freed, 12 * kMiB);
  EXPECT_EQ(resident(0, 16 * kMiB), 0U);
  EXPECT_TRUE(words_are(host_at_offset(*memory, 0), kPoison, 16 * kMiB));
}

TEST_P(ReturnPoolTest, with_poison_a_report_of_untouched_memory_takes_none_from_the_host) {
  make(64 * kMiB, 4 * kMiB);
  pipeline->set_poison(kPoison);
  report(0, 64 * kMiB);
  EXPECT_EQ(resident(0, 64 * kMiB), 0U);
  EXPECT_EQ(pipeline->counters().absent, 64 * kMiB);
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0, 4 * kMiB)) << "as it was";
}

// Where nothing brings the poison value back, it is written in place.
TEST(ReturnPoison, without_a_pool_only_what_is_there_is_overwritten) {
  for (const auto backing : {MemoryBacking::kAnonymous, MemoryBacking::kShared}) {
    const auto memory = make_memory(64 * kMiB, 0, backing);
    ReturnPipeline pipeline(*memory);
    pipeline.set_poison(kPoison);
    (void)::madvise(host_at_offset(*memory, 0), 64 * kMiB, MADV_NOHUGEPAGE);
    fill(host_at_offset(*memory, 32 * kMiB), 0xAA);
    fill(host_at_offset(*memory, 36 * kMiB), 0xAA, 4096);
    fill(host_at_offset(*memory, 64 * kMiB - 4096), 0xAA, 4096);
    const uint64_t before = resident_bytes(host_at_offset(*memory, 0), 64 * kMiB);
    ASSERT_EQ(before, kChunkBytes + 2 * 4096);
    ASSERT_EQ(pipeline.add(GuestAddr{0}, 64 * kMiB, ReturnSource::kReport),
              ReturnPipeline::Added::kTaken);
    pipeline.flush_all();
    EXPECT_EQ(resident_bytes(host_at_offset(*memory, 0), 64 * kMiB), before);
    EXPECT_EQ(pipeline.counters().overwritten, before);
    EXPECT_EQ(pipeline.counters().absent, 64 * kMiB - before);
    EXPECT_TRUE(words_are(host_at_offset(*memory, 32 * kMiB), kPoison, kChunkBytes));
    EXPECT_TRUE(words_are(host_at_offset(*memory, 36 * kMiB), kPoison, 4096));
    EXPECT_TRUE(words_are(host_at_offset(*memory, 64 * kMiB - 4096), kPoison, 4096));
  }
}

// The bound that docs/threat-model.md names.
TEST_P(ReturnPoolTest, reports_of_memory_in_use_gain_nothing_beyond_ram_and_the_pools_limit) {
  constexpr uint64_t kRam = 16 * kMiB;
  constexpr uint64_t kPool = 8 * kMiB;
  // A chunk that a fault is being answered with.
  constexpr uint64_t kSmall = kChunkBytes;
  make(kRam, kPool);
  uint64_t highest = 0;
  for (uint64_t round = 0; round < 1000; ++round) {
    // All of it at first, then chunks and parts of chunks; each is used again at once.
    const uint64_t chunk = round * 3 % 8 * kChunkBytes;
    const uint64_t bytes = round % 5 == 4 ? kChunkBytes / 2 : kChunkBytes;
    if (round % 100 == 0) {
      fill(host_at_offset(*memory, 0), 0xAA, kRam);
      report(0, kRam);
      fill(host_at_offset(*memory, 0), 0xBB, kRam);
    }
    report(chunk, bytes);
    host_at_offset(*memory, chunk)[round % bytes] = 0xCC;
    highest = std::max(highest, resident(0, kRam) + ops->arena_resident());
    ASSERT_LE(highest, kRam + kPool + kSmall) << "round " << round;
  }
  EXPECT_TRUE(ops->arena_seen());
  EXPECT_GE(highest, kRam);
  EXPECT_GE(pool->stats().moved_bytes, 100 * kChunkBytes) << "the pool was hardly used";
}

}  // namespace
}  // namespace lethe
