// The scrub pool on a host that refuses: system calls that are forbidden, fail, or do half of what
// they were asked.
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <atomic>
#include <functional>
#include <vector>

#include "memory/chunk_mover.h"
#include "memory/pool_ops.h"
#include "memory/scrub_pool_test_util.h"

namespace lethe {
namespace {

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct MoveArgument {  // struct uffdio_move, Linux 6.8
  uint64_t dst, src, len, mode;
  int64_t move;
};
constexpr unsigned long kMove = _IOWR(UFFDIO, 0x05, MoveArgument);
constexpr uint64_t kFeatureMove = uint64_t{1} << 16;

// The system, except for what a test makes fail. Any thread.
class FailingOps : public PoolOps {
 public:
  int open_userfaultfd() override { return forbidden ? -EPERM : PoolOps::open_userfaultfd(); }
  int control(int fd, unsigned long request, void* argument) override {
    if (request == UFFDIO_API && no_move &&
        (static_cast<uffdio_api*>(argument)->features & kFeatureMove) != 0)
      return EINVAL;
    if (request == UFFDIO_REGISTER && no_register) return EINVAL;
    if (request == kMove && move_error != 0)
      return fail_move(fd, *static_cast<MoveArgument*>(argument));
    if ((request == UFFDIO_COPY && no_copy) || (request == UFFDIO_ZEROPAGE && no_zero)) {
      ++failed;
      return ENOMEM;
    }
    return PoolOps::control(fd, request, argument);
  }
  int remap(uint8_t* from, uint8_t* to, uint64_t size) override {
    if (remap_error == 0) return PoolOps::remap(from, to, size);
    ++failed;
    remap_target = to;
    // As the kernel might: the target is gone, and there is nothing in its place.
    if (remap_unmaps) ::munmap(to, size);
    return remap_error;
  }
  int advise(uint8_t* at, uint64_t size, int advice) override {
    if (advice == MADV_POPULATE_WRITE && no_fresh) return ENOMEM;
    if (advice == MADV_POPULATE_WRITE && slow_fresh) on_fresh();
    if (advice == MADV_DONTNEED && no_discard) return ENOMEM;
    return PoolOps::advise(at, size, advice);
  }

  int read_at(int fd, void* to, size_t bytes, int64_t offset) override {
    return no_page_map ? EIO : PoolOps::read_at(fd, to, bytes, offset);
  }

  std::function<void()> on_fresh;  // runs when `slow_fresh`
  std::atomic<bool> slow_fresh{false}, no_page_map{false};
  std::atomic<uint8_t*> remap_target{nullptr};
  std::atomic<bool> forbidden{false}, no_move{false}, no_register{false}, no_copy{false},
      no_zero{false}, no_fresh{false}, no_discard{false}, remap_unmaps{false};
  std::atomic<int> move_error{0}, remap_error{0};
  std::atomic<uint64_t> move_first{0};  // bytes moved before it fails
  std::atomic<int> failed{0};

 private:
  int fail_move(int fd, MoveArgument& argument) {
    ++failed;
    const uint64_t first = move_first.exchange(0);
    if (first == 0) {
      argument.move = -move_error;
      return move_error;
    }
    // Half-way: the kernel reports what it moved, and EAGAIN; the next try fails.
    MoveArgument part = argument;
    part.len = first;
    EXPECT_EQ(PoolOps::control(fd, kMove, &part), 0);
    argument.move = static_cast<int64_t>(first);
    return EAGAIN;
  }
};

TEST(ChunkMoverProbe, a_forbidden_userfaultfd_leaves_discarding_and_says_what_to_do) {
  FailingOps ops;
  ops.forbidden = true;
  const ChunkMoverProbe probe = probe_chunk_mover(ops);
  EXPECT_EQ(probe.mover, ChunkMover::kNone);
  EXPECT_NE(probe.why.find("not permitted"), std::string::npos) << probe.why;
  EXPECT_NE(probe.why.find("vm.unprivileged_userfaultfd"), std::string::npos) << probe.why;
}

TEST(ChunkMoverProbe, a_kernel_without_uffdio_move_leaves_mremap) {
  if (probe_chunk_mover().mover == ChunkMover::kNone)
    GTEST_SKIP() << "SKIPPED: " << probe_chunk_mover().why;
  FailingOps ops;
  ops.no_move = true;
  const ChunkMoverProbe probe = probe_chunk_mover(ops);
  EXPECT_EQ(probe.mover, ChunkMover::kMremap);
  EXPECT_NE(probe.why.find("UFFDIO_MOVE"), std::string::npos) << probe.why;
  ops.remap_error = EINVAL;
  EXPECT_EQ(probe_chunk_mover(ops).mover, ChunkMover::kNone);
}

TEST(ScrubPoolFailure, without_userfaultfd_nothing_is_taken_and_one_line_says_so) {
  FailingOps ops;
  ops.forbidden = true;
  const auto memory = make_memory(8 * kMiB);
  ScrubPoolOptions options;
  options.bytes_max = 8 * kMiB;
  options.ops = &ops;
  const auto pool = ScrubPool::create(*memory, options);
  fill(host_at_offset(*memory, 0), 0xAA, 8 * kMiB);
  testing::internal::CaptureStderr();
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(pool->take(host_at_offset(*memory, 0)));
  pool->set_poison(0x11111111);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
  EXPECT_NE(log.find("userfaultfd is not permitted"), std::string::npos) << log;
  EXPECT_FALSE(pool->honours_poison());
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0xAA, 8 * kMiB));
}

TEST(ScrubPoolFailure, memory_that_cannot_be_watched_is_not_taken_and_stays_whole) {
  if (probe_chunk_mover().mover == ChunkMover::kNone)
    GTEST_SKIP() << "SKIPPED: " << probe_chunk_mover().why;
  FailingOps ops;
  ops.no_register = true;
  const auto memory = make_memory(8 * kMiB);
  ScrubPoolOptions options;
  options.bytes_max = 8 * kMiB;
  options.ops = &ops;
  options.probe = ChunkMoverProbe{ChunkMover::kMremap, "test"};
  const auto pool = ScrubPool::create(*memory, options);
  fill(host_at_offset(*memory, 0), 0xAA, 8 * kMiB);
  EXPECT_FALSE(pool->take(host_at_offset(*memory, 0)));
  EXPECT_FALSE(pool->take(host_at_offset(*memory, 0)));
  EXPECT_TRUE(all_are(host_at_offset(*memory, 0), 0xAA, 8 * kMiB));
}

class ScrubPoolFailureTest : public ScrubPoolTest {
 protected:
  void SetUp() override {
    ScrubPoolTest::SetUp();
    if (IsSkipped()) return;
    memory = make_memory(16 * kMiB);
    fill(host_at_offset(*memory, 0), 0xAA, 16 * kMiB);
    auto with = options(16 * kMiB);
    with.ops = &ops;
    pool = ScrubPool::create(*memory, with);
  }
  [[nodiscard]] uint8_t* chunk(size_t n) const { return host_at_offset(*memory, n * kChunkBytes); }
  void take_and_settle(size_t n) const {
    ASSERT_TRUE(pool->take(chunk(n)));
    ASSERT_TRUE(eventually([&] { return pool->stats().clean_bytes >= kChunkBytes; }));
  }
  void break_mover(int error) {
    if (GetParam() == ChunkMover::kMremap) {
      ops.remap_error = error;
    } else {
      ops.move_error = error;
    }
  }
  void mend_mover() {
    ops.remap_error = 0;
    ops.move_error = 0;
  }

  FailingOps ops;
  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<ScrubPool> pool;
};
INSTANTIATE_TEST_SUITE_P(Movers, ScrubPoolFailureTest,
                         ::testing::Values(ChunkMover::kUserfaultMove, ChunkMover::kMremap),
                         mover_name);

// mremap moves all or nothing; UFFDIO_MOVE unmaps nothing.
class ScrubPoolHalfMoveTest : public ScrubPoolFailureTest {};
INSTANTIATE_TEST_SUITE_P(Movers, ScrubPoolHalfMoveTest,
                         ::testing::Values(ChunkMover::kUserfaultMove), mover_name);
class ScrubPoolMremapTest : public ScrubPoolFailureTest {};
INSTANTIATE_TEST_SUITE_P(Movers, ScrubPoolMremapTest, ::testing::Values(ChunkMover::kMremap),
                         mover_name);

TEST_P(ScrubPoolFailureTest, a_chunk_that_cannot_be_moved_out_is_refused_and_stays) {
  take_and_settle(0);  // what is set up lazily is
  for (const int error : {EBUSY, EAGAIN, ENOMEM, EINVAL}) {
    break_mover(error);
    EXPECT_FALSE(pool->take(chunk(1))) << error;
    mend_mover();
    EXPECT_TRUE(all_are(chunk(1), 0xAA)) << error;
  }
  EXPECT_EQ(pool->stats().refused, 4U);
  EXPECT_EQ(pool->stats().dirty_bytes, 0U);
  EXPECT_TRUE(pool->take(chunk(1))) << "the slot was lost";
}

TEST_P(ScrubPoolHalfMoveTest, a_chunk_moved_out_by_half_is_not_taken_and_that_half_is_forgotten) {
  take_and_settle(0);
  ops.move_first = kMiB;
  break_mover(EBUSY);
  EXPECT_FALSE(pool->take(chunk(1)));
  mend_mover();
  EXPECT_EQ(pool->stats().dirty_bytes, 0U);
  EXPECT_TRUE(all_are(chunk(1), 0, kMiB));
  EXPECT_TRUE(all_are(chunk(1) + kMiB, 0xAA, kMiB));
}

TEST_P(ScrubPoolFailureTest, a_fault_is_answered_though_no_chunk_can_be_moved_in) {
  take_and_settle(0);
  break_mover(EBUSY);
  EXPECT_TRUE(all_are(chunk(0), 0));
  mend_mover();
  fill(chunk(0), 0xBB);
  EXPECT_TRUE(all_are(chunk(0), 0xBB));
  EXPECT_TRUE(eventually([&] { return pool->stats().small_bytes == kChunkBytes; }));
  EXPECT_EQ(pool->stats().clean_bytes, 0U) << "the chunk that was not moved is still held";
  EXPECT_TRUE(all_are(chunk(1), 0xAA));
}

TEST_P(ScrubPoolHalfMoveTest, a_chunk_moved_in_by_half_is_completed_page_by_page) {
  take_and_settle(0);
  ops.move_first = kMiB;
  break_mover(EBUSY);
  EXPECT_TRUE(all_are(chunk(0), 0));
  mend_mover();
  fill(chunk(0), 0xBB);
  EXPECT_TRUE(all_are(chunk(0), 0xBB));
}

TEST_P(ScrubPoolMremapTest, an_mremap_that_fails_half_way_leaves_guest_memory_mapped) {
  take_and_settle(0);
  ops.remap_unmaps = true;
  ops.remap_error = ENOMEM;
  // One attempt with the pool's chunk and one with a fresh one, each unmapping; then page by page.
  // (A thread that touches the range in that moment would be lost: the kernel sees to it that this
  // does not happen, and the test that nobody else is there.)
  std::thread([&] { EXPECT_TRUE(all_are(chunk(0), 0)); }).join();
  EXPECT_GE(ops.failed, 1);
  ops.remap_error = 0;
  fill(chunk(0), 0xBB);
  EXPECT_TRUE(all_are(chunk(0), 0xBB));
  // And watched, and in use again.
  ASSERT_EQ(::madvise(chunk(0), kChunkBytes, MADV_DONTNEED), 0);
  const uint64_t fresh = pool->stats().fresh_bytes;
  EXPECT_TRUE(all_are(chunk(0), 0));
  EXPECT_TRUE(eventually([&] { return pool->stats().fresh_bytes == fresh + kChunkBytes; }));
  EXPECT_TRUE(pool->take(chunk(1)));
  EXPECT_TRUE(all_are(chunk(1), 0));
  EXPECT_TRUE(all_are(chunk(2), 0xAA));
}

TEST_P(ScrubPoolFailureTest, without_memory_for_a_chunk_pages_are_filled_and_without_that_shared) {
  take_and_settle(0);
  pool->set_bytes_max(kChunkBytes);
  ASSERT_TRUE(all_are(chunk(0), 0));
  ops.no_fresh = true;
  ASSERT_EQ(::madvise(chunk(1), kChunkBytes, MADV_DONTNEED), 0);
  EXPECT_TRUE(all_are(chunk(1), 0));
  ops.no_copy = true;
  ASSERT_EQ(::madvise(chunk(2), kChunkBytes, MADV_DONTNEED), 0);
  fill(chunk(2), 0xBB);  // the zero page first, then the kernel's own copy
  EXPECT_TRUE(all_are(chunk(2), 0xBB));
  EXPECT_EQ(pool->stats().fresh_bytes, 0U);
  EXPECT_EQ(pool->stats().stalls, 0U);
}

TEST_P(ScrubPoolFailureTest, without_any_memory_a_fault_waits_until_there_is_some) {
  take_and_settle(0);
  pool->set_bytes_max(kChunkBytes);
  ASSERT_TRUE(all_are(chunk(0), 0));
  ops.no_fresh = true;
  ops.no_copy = true;
  ops.no_zero = true;
  ASSERT_EQ(::madvise(chunk(1), kChunkBytes, MADV_DONTNEED), 0);
  std::atomic<bool> done{false};
  std::thread guest([&] {
    fill(chunk(1), 0xBB);
    done = true;
  });
  EXPECT_TRUE(eventually([&] { return pool->stats().stalls >= 3; }));
  EXPECT_FALSE(done);
  ops.no_fresh = false;
  EXPECT_TRUE(eventually([&] { return done.load(); }));
  guest.join();
  EXPECT_TRUE(all_are(chunk(1), 0xBB));
}

TEST_P(ScrubPoolFailureTest, destroyed_while_a_fault_waits_the_kernel_answers_it) {
  take_and_settle(0);
  pool->set_bytes_max(kChunkBytes);
  ASSERT_TRUE(all_are(chunk(0), 0));
  ops.no_fresh = true;
  ops.no_copy = true;
  ops.no_zero = true;
  ASSERT_EQ(::madvise(chunk(1), kChunkBytes, MADV_DONTNEED), 0);
  std::atomic<bool> done{false};
  std::thread guest([&] {
    fill(chunk(1), 0xBB);
    done = true;
  });
  EXPECT_TRUE(eventually([&] { return pool->stats().stalls >= 1; }));
  pool.reset();
  EXPECT_TRUE(eventually([&] { return done.load(); }));
  guest.join();
  EXPECT_TRUE(all_are(chunk(1), 0xBB));
}

TEST_P(ScrubPoolFailureTest, what_cannot_be_discarded_is_overwritten) {
  auto with = options(16 * kMiB);
  with.ops = &ops;
  with.scrub_at_map = true;
  with.forget_max = milliseconds(50);
  pool = ScrubPool::create(*memory, with);
  ops.no_discard = true;
  ASSERT_TRUE(pool->take(chunk(0)));
  EXPECT_TRUE(eventually([&] { return pool->stats().expired_bytes == kChunkBytes; }));
  ops.no_discard = false;
  EXPECT_EQ(pool->stats().dirty_bytes, 0U);
  EXPECT_TRUE(all_are(chunk(0), 0));
}

TEST_P(ScrubPoolFailureTest, what_cannot_be_discarded_counts_as_held_until_it_can) {
  auto with = options(kChunkBytes);
  with.ops = &ops;
  with.scrub_at_map = true;
  with.forget_max = milliseconds(50);
  pool = ScrubPool::create(*memory, with);
  ops.no_discard = true;
  ASSERT_TRUE(pool->take(chunk(0)));
  ASSERT_TRUE(eventually([&] { return pool->stats().expired_bytes == kChunkBytes; }));
  EXPECT_FALSE(pool->take(chunk(1))) << "2 MiB more than the limit";
  // With room for others its slot is passed over, or refused.
  pool->set_bytes_max(4 * kChunkBytes);
  for (size_t n = 1; n < 8; ++n) (void)pool->take(chunk(n));
  ops.no_discard = false;
  pool->set_bytes_max(kChunkBytes);
  EXPECT_TRUE(eventually([&] { return pool->stats().dirty_bytes == 0; }));
  // Each slot can be used again: none has pages in it that would be in the way.
  const uint64_t refused = pool->stats().refused;
  for (int round = 0; round < 16; ++round) {
    fill(chunk(7), 0xCC);
    ASSERT_TRUE(eventually([&] { return pool->take(chunk(7)); })) << round;
    EXPECT_TRUE(all_are(chunk(7), 0)) << round;
  }
  EXPECT_EQ(pool->stats().refused, refused);
  EXPECT_TRUE(all_are(chunk(0), 0));
}

TEST_P(ScrubPoolFailureTest, without_knowing_which_pages_are_there_poison_ends_the_pool) {
  take_and_settle(0);
  ops.no_page_map = true;
  pool->set_poison(0x55555555);
  EXPECT_FALSE(pool->honours_poison());
  ops.no_page_map = false;
  EXPECT_FALSE(pool->take(chunk(1))) << "it would come back as zeros";
  EXPECT_EQ(pool->stats().bytes_max, 0U);
  EXPECT_TRUE(all_are(chunk(1), 0xAA));
}

TEST_P(ScrubPoolMremapTest, an_mremap_out_that_fails_half_way_leaves_the_pools_slot_mapped) {
  take_and_settle(0);
  ops.remap_unmaps = true;
  ops.remap_error = ENOMEM;
  EXPECT_FALSE(pool->take(chunk(1)));
  unsigned char page = 0;
  EXPECT_EQ(::mincore(ops.remap_target, 4096, &page), 0) << "a hole in the arena";
  ops.remap_unmaps = false;
  ops.remap_error = 0;
  EXPECT_TRUE(all_are(chunk(1), 0xAA));
  EXPECT_TRUE(pool->take(chunk(1)));
  EXPECT_TRUE(all_are(chunk(1), 0));
}

TEST_P(ScrubPoolFailureTest, what_is_overdue_is_discarded_before_a_fresh_chunk_is_made) {
  pool.reset();
  memory = make_memory(32 * kMiB);
  constexpr size_t kTaken = 4;  // each fresh chunk takes one's place
  fill(chunk(0), 0xAA, kTaken * kChunkBytes);
  auto with = options(16 * kMiB);
  with.ops = &ops;
  with.scrub_at_map = true;
  with.forget_max = milliseconds(1000);  // overdue after half of it
  pool = ScrubPool::create(*memory, with);
  pool->set_poison(0x55555555);  // memory that was never there then never gets a kept chunk
  steady_clock::time_point taken;
  std::atomic<int> made{0};
  std::atomic<uint64_t> expired_before_last{UINT64_MAX};
  const auto wait_until = [&](milliseconds after) { std::this_thread::sleep_until(taken + after); };
  // While the first is made the two others' faults come in, and are read together. The second takes
  // the host long; the third must not be begun before the timer has run.
  ops.on_fresh = [&] {
    const int n = ++made;
    if (n == 1) wait_until(milliseconds(150));
    if (n == 2) wait_until(milliseconds(700));
    if (n == 3) expired_before_last = pool->stats().expired_bytes;
  };
  ops.slow_fresh = true;
  taken = steady_clock::now();
  for (size_t n = 0; n < kTaken; ++n) ASSERT_TRUE(pool->take(chunk(n)));
  std::vector<std::thread> guests;
  for (const size_t n : {6, 9, 12}) guests.emplace_back([&, n] { *chunk(n) = 1; });
  for (std::thread& guest : guests) guest.join();
  ops.slow_fresh = false;
  EXPECT_EQ(made, 3);
  EXPECT_EQ(expired_before_last, (kTaken - 2) * kChunkBytes);
}

}  // namespace
}  // namespace lethe
