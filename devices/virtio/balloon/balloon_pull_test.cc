#include "devices/virtio/balloon/balloon_pull.h"

#include <gtest/gtest.h>

#include <future>
#include <numeric>

#include "devices/virtio/balloon/fake_balloon_driver.h"

namespace lethe {
namespace {

using namespace std::chrono_literals;
constexpr uint64_t kFree = BalloonGuest::kFree;

// A guest of 512 MiB: 256 MiB are free blocks, then 8 MiB in single free pages, each beside a used
// one. All of it has content.
class PullTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 512 * kMiB;
  static constexpr uint64_t kBlocks = 64;
  static constexpr uint64_t kFragments = kFree + kBlocks * FakeBalloonDriver::kBlock;
  static constexpr uint64_t kFragmentPages = 4096;

  void make(const BalloonOptions& options = {}) {
    b = std::make_unique<BalloonGuest>(kSize, options);
    driver = std::make_unique<FakeBalloonDriver>(*b);
    driver->total = kSize;
    for (uint64_t i = 0; i < kBlocks; ++i)
      driver->blocks.push_back(kFree + i * FakeBalloonDriver::kBlock);
    for (uint64_t i = 0; i < kFragmentPages; ++i)
      driver->pages.push_back(kFragments + 2 * i * kPage);
    fill(*b->memory, kFree, kBlocks * FakeBalloonDriver::kBlock, 0xaa);
    fill(*b->memory, kFragments, 2 * kFragmentPages * kPage, 0xcc);
    // Its first statistics were sent with nothing free: let them arrive.
    ASSERT_TRUE(eventually([&] { return !has_statistics() || b->counters().statistics == 1; }));
  }
  [[nodiscard]] bool has_statistics() const {
    return (b->guest->features() & balloon_bit(VIRTIO_BALLOON_F_STATS_VQ)) != 0;
  }
  // Starts a pull, and lets the guest work until it has ended.
  PullResult pull(uint64_t bytes, std::chrono::seconds patience = 20s) {
    start(bytes);
    return finish(patience);
  }
  void start(uint64_t bytes) {
    result = std::promise<PullResult>();
    b->device->pull(
        bytes, [this](uint64_t so_far) { progress.push_back(so_far); },
        [this](PullResult r) { result.set_value(std::move(r)); });
  }
  PullResult finish(std::chrono::seconds patience = 20s) {
    auto future = result.get_future();
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (future.wait_for(0s) != std::future_status::ready) {
      driver->work();
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "the pull did not end";
        return {};
      }
    }
    for (int i = 0; i < 3; ++i) driver->work();  // the guest hears of the end
    return future.get();
  }
  // For a pull that ends without the driver's work.
  static PullResult end_of(std::promise<PullResult>& promise) {
    std::future<PullResult> future = promise.get_future();
    if (future.wait_for(10s) == std::future_status::ready) return future.get();
    ADD_FAILURE() << "the pull did not end";
    return {};
  }
  // What the guest kept for itself is as it was.
  void expect_used_memory_intact() {
    for (uint64_t i = 0; i < kFragmentPages; ++i)
      ASSERT_TRUE(b->reads(kFragments + (2 * i + 1) * kPage, kPage, 0xcc)) << i;
  }
  void expect_all_given_back() {
    EXPECT_TRUE(driver->held.empty());
    EXPECT_TRUE(driver->balloon.empty());
    EXPECT_EQ(driver->free_bytes(), kBlocks * FakeBalloonDriver::kBlock + kFragmentPages * kPage);
    EXPECT_EQ(b->config().num_pages, 0u);
  }
  [[nodiscard]] uint64_t free_and_resident() const {
    uint64_t bytes = 0;
    for (const uint64_t block : driver->blocks)
      bytes += resident(*b->memory, block, FakeBalloonDriver::kBlock);
    for (const uint64_t page : driver->pages) bytes += resident(*b->memory, page, kPage);
    return bytes;
  }

  std::unique_ptr<BalloonGuest> b;
  std::unique_ptr<FakeBalloonDriver> driver;
  std::promise<PullResult> result;
  std::vector<uint64_t> progress;
};

TEST_F(PullTest, of_all_returns_99_percent_of_what_is_free) {
  make();
  const uint64_t before = free_and_resident();
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_TRUE(pulled.complete) << pulled.text;
  const uint64_t after = free_and_resident();
  EXPECT_GE(pulled.bytes, before - after);
  EXPECT_LE(after, driver->free_bytes() / 100);
  EXPECT_TRUE(std::ranges::is_sorted(progress));
  ASSERT_FALSE(progress.empty());
  EXPECT_LE(progress.back(), pulled.bytes);
  expect_used_memory_intact();
  expect_all_given_back();
}

TEST_F(PullTest, leaves_the_guest_a_reserve_at_every_moment) {
  make();
  ASSERT_TRUE(pull(UINT64_MAX).complete);
  EXPECT_GE(driver->free_least, BalloonPull::reserve(kSize) - FakeBalloonDriver::kBlock);
  EXPECT_EQ(BalloonPull::reserve(kSize), 8 * kMiB);
  EXPECT_EQ(BalloonPull::reserve(64 * kGiB), kGiB);
}

TEST_F(PullTest, takes_no_more_than_was_asked_for) {
  make();
  const PullResult pulled = pull(40 * kMiB);
  EXPECT_TRUE(pulled.complete) << pulled.text;
  EXPECT_GE(pulled.bytes, 36 * kMiB);
  EXPECT_LE(pulled.bytes, 44 * kMiB);
  expect_all_given_back();
}

TEST_F(PullTest, again_finds_what_was_used_in_between) {
  make();
  ASSERT_TRUE(pull(UINT64_MAX).complete);
  // What was freed last is what Linux hands out first.
  fill(*b->memory, driver->blocks.back(), FakeBalloonDriver::kBlock, 0xbb);
  const uint64_t hints_before = b->counters().hints;
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_TRUE(pulled.complete);
  EXPECT_EQ(pulled.bytes, FakeBalloonDriver::kBlock) << "what was absent already does not count";
  EXPECT_LE(b->counters().hints, hints_before + 8) << "and is hardly touched";
  EXPECT_EQ(driver->ids.front() + driver->ids.size() - 1, driver->ids.back()) << "never twice";
}

// virtio 1.2, 5.5.6.5: what the guest wrote since must stay. Linux may take a block back as soon as
// its notification is out.
TEST_F(PullTest, a_hinted_block_that_is_used_at_once_keeps_its_new_content) {
  make();
  std::vector<uint64_t> reused;
  driver->after_hint = [&](uint64_t block) {
    ASSERT_EQ(resident(*b->memory, block, FakeBalloonDriver::kBlock), 0u) << "done already";
    if (reused.size() >= 20) return;
    reused.push_back(block);
    driver->held.pop_back();
    fill(*b->memory, block, FakeBalloonDriver::kBlock, 0xee);
  };
  EXPECT_TRUE(pull(UINT64_MAX).complete);
  ASSERT_EQ(reused.size(), 20u);
  for (const uint64_t block : reused) EXPECT_TRUE(b->reads(block, FakeBalloonDriver::kBlock, 0xee));
  expect_used_memory_intact();
}

TEST_F(PullTest, a_guest_without_hinting_is_pulled_by_its_balloon) {
  make({.free_page_hint = false});
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_TRUE(pulled.complete) << pulled.text;
  EXPECT_GE(pulled.bytes, 250 * kMiB);
  EXPECT_GE(driver->free_least, BalloonPull::reserve(kSize) - kMiB);
  expect_used_memory_intact();
  expect_all_given_back();
}

// Without deflate-on-OOM the guest could not take its pages back in need.
TEST_F(PullTest, a_guest_without_deflate_on_oom_is_never_inflated) {
  make({.deflate_on_oom = false});
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_TRUE(pulled.complete) << pulled.text;
  EXPECT_EQ(b->counters().inflated_pages, 0u);
  EXPECT_GE(pulled.bytes, 240 * kMiB);
  expect_all_given_back();
}

TEST_F(PullTest, a_guest_without_statistics_gives_an_eighth_at_most) {
  make({.statistics = false});
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_TRUE(pulled.complete) << pulled.text;
  EXPECT_GE(pulled.bytes, kSize / 8 - FakeBalloonDriver::kBlock);
  EXPECT_LE(pulled.bytes, kSize / 8);
  expect_all_given_back();
}

TEST_F(PullTest, with_a_balloon_target_ends_at_that_target) {
  make();
  b->device->set_target(20 * kMiB);
  ASSERT_TRUE(eventually([&] {
    driver->work();
    return driver->balloon.size() == 20 * kMiB / kPage;
  }));
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_TRUE(pulled.complete) << pulled.text;
  EXPECT_EQ(driver->balloon.size(), 20 * kMiB / kPage);
  EXPECT_EQ(b->config().num_pages, 20 * kMiB / kPage);
}

TEST_F(PullTest, a_target_set_meanwhile_counts_at_the_end) {
  make();
  start(UINT64_MAX);
  b->device->set_target(12 * kMiB);
  EXPECT_TRUE(finish().complete);
  EXPECT_TRUE(eventually([&] {
    driver->work();
    return driver->balloon.size() == 12 * kMiB / kPage;
  }));
}

TEST_F(PullTest, a_second_one_waits_for_the_first_and_a_third_ends_at_once) {
  make();
  start(UINT64_MAX);
  std::promise<PullResult> second;
  std::promise<PullResult> third;
  std::atomic<bool> second_done = false;
  b->device->pull(
      kMiB, [](uint64_t) {},
      [&](PullResult r) {
        second_done = true;
        second.set_value(std::move(r));
      });
  b->device->pull(kMiB, [](uint64_t) {}, [&](PullResult r) { third.set_value(std::move(r)); });
  const PullResult refused = end_of(third);
  EXPECT_FALSE(refused.complete);
  EXPECT_EQ(refused.bytes, 0u);
  EXPECT_FALSE(second_done);
  EXPECT_TRUE(finish().complete);
  EXPECT_TRUE(eventually([&] {
    driver->work();
    return second_done.load();
  }));
  EXPECT_TRUE(end_of(second).complete);
}

TEST_F(PullTest, a_reset_ends_the_one_that_waits_too) {
  make();
  start(UINT64_MAX);
  std::promise<PullResult> second;
  b->device->pull(kMiB, [](uint64_t) {}, [&](PullResult r) { second.set_value(std::move(r)); });
  b->guest->reset();
  EXPECT_FALSE(end_of(second).complete);
}

// --- guests that do not do their part: everything ends by a deadline, and is given back

TEST_F(PullTest, a_guest_that_ignores_the_command_is_left_alone) {
  make();
  driver->answers_hints = false;
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_FALSE(pulled.complete);
  EXPECT_LT(pulled.took, 5s);
  EXPECT_EQ(b->config().free_page_hint_cmd_id, static_cast<uint32_t>(VIRTIO_BALLOON_CMD_ID_DONE));
  driver->answers_hints = true;
  EXPECT_TRUE(pull(UINT64_MAX).complete);
}

TEST_F(PullTest, a_guest_that_never_says_stop_is_left_alone) {
  make();
  driver->says_stop = false;
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_FALSE(pulled.complete);
  EXPECT_LT(pulled.took, 5s);
  EXPECT_EQ(b->config().free_page_hint_cmd_id, static_cast<uint32_t>(VIRTIO_BALLOON_CMD_ID_DONE));
  EXPECT_TRUE(driver->held.empty());
}

TEST_F(PullTest, a_guest_without_an_answer_is_left_alone) {
  make();
  driver->answers_statistics = false;
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_FALSE(pulled.complete);
  EXPECT_LT(pulled.took, 5s);
  EXPECT_EQ(pulled.bytes, 0u);
}

TEST_F(PullTest, a_guest_that_runs_out_of_pages_is_asked_for_no_more) {
  make();
  driver->inflates_max = 300;
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_TRUE(pulled.complete) << pulled.text;
  EXPECT_GE(pulled.bytes, 240 * kMiB);
  expect_all_given_back();
}

TEST_F(PullTest, a_guest_that_keeps_its_balloon_gets_its_target_back) {
  make();
  driver->deflates = false;
  const PullResult pulled = pull(UINT64_MAX);
  EXPECT_FALSE(pulled.complete);
  EXPECT_EQ(b->config().num_pages, 0u);
}

TEST_F(PullTest, a_reset_ends_it) {
  make();
  driver->answers_hints = false;
  start(UINT64_MAX);
  ASSERT_TRUE(eventually([&] {
    driver->work();
    return b->config().free_page_hint_cmd_id > VIRTIO_BALLOON_CMD_ID_DONE;
  }));
  b->guest->reset();
  const PullResult ended = end_of(result);
  EXPECT_FALSE(ended.complete);
  EXPECT_EQ(b->config().free_page_hint_cmd_id, static_cast<uint32_t>(VIRTIO_BALLOON_CMD_ID_STOP));
}

// --- hints that nobody asked for

TEST_F(PullTest, hints_without_a_valid_command_change_nothing) {
  make();
  const FakeBuffer block = BalloonGuest::range(kFree, FakeBalloonDriver::kBlock);
  const auto send = [&](const FakeBuffer& buffer) {
    EXPECT_TRUE(b->request(BalloonQueue::kHint, {&buffer, 1}));
  };
  send(block);
  for (const uint32_t id : {0u, 1u, 2u, 3u, 0xffff'ffffu}) {
    const GuestAddr at = b->guest->heap().alloc(4);
    ASSERT_TRUE(b->memory->store(at, id));
    send({at, 4, false});
    send(block);
  }
  EXPECT_EQ(b->counters().hints_ignored, 6u);
  EXPECT_EQ(b->counters().hints, 0u);
  send({b->guest->heap().alloc(16), 8, false});
  send({b->guest->heap().alloc(16), 3, false});
  EXPECT_EQ(b->counters().chains_refused, 2u);
  EXPECT_TRUE(b->reads(kFree, FakeBalloonDriver::kBlock, 0xaa));
  EXPECT_EQ(b->guest->needs_reset_count(), 0u);
}

TEST_F(PullTest, hints_after_the_end_of_a_window_are_ignored) {
  make();
  driver->answers_hints = false;
  start(8 * kMiB);
  ASSERT_TRUE(eventually([&] {
    driver->work();
    return b->config().free_page_hint_cmd_id > VIRTIO_BALLOON_CMD_ID_DONE;
  }));
  // A driver that does not look at the configuration while it hints.
  const GuestAddr at = b->guest->heap().alloc(4);
  ASSERT_TRUE(b->memory->store(at, uint32_t{b->config().free_page_hint_cmd_id}));
  const FakeBuffer id{at, 4, false};
  ASSERT_TRUE(b->request(BalloonQueue::kHint, {&id, 1}));
  for (uint64_t i = 0; i < 6; ++i) {
    const FakeBuffer block =
        BalloonGuest::range(kFree + i * FakeBalloonDriver::kBlock, FakeBalloonDriver::kBlock);
    ASSERT_TRUE(b->request(BalloonQueue::kHint, {&block, 1}));
  }
  EXPECT_EQ(b->counters().hints, 2u);
  EXPECT_EQ(b->counters().hints_ignored, 4u);
  EXPECT_TRUE(b->reads(kFree + 8 * kMiB, 16 * kMiB, 0xaa));
  ASSERT_TRUE(b->memory->store(at, uint32_t{VIRTIO_BALLOON_CMD_ID_STOP}));
  ASSERT_TRUE(b->request(BalloonQueue::kHint, {&id, 1}));
  EXPECT_TRUE(finish().complete);
}

TEST_F(PullTest, hints_under_an_older_command_are_ignored) {
  make();
  driver->answers_hints = false;
  const GuestAddr at = b->guest->heap().alloc(4);
  const FakeBuffer id{at, 4, false};
  const auto send_id = [&](uint32_t value) {
    ASSERT_TRUE(b->memory->store(at, value));
    ASSERT_TRUE(b->request(BalloonQueue::kHint, {&id, 1}));
  };
  const auto begin = [&](uint32_t before) {
    start(4 * kMiB);
    ASSERT_TRUE(eventually([&] {
      driver->work();
      return b->config().free_page_hint_cmd_id > std::max(before, VIRTIO_BALLOON_CMD_ID_DONE + 0U);
    }));
  };
  begin(0);
  const uint32_t older = b->config().free_page_hint_cmd_id;
  send_id(older);  // and then the guest is busy with something else for too long
  EXPECT_FALSE(finish().complete);
  begin(older);
  const FakeBuffer block = BalloonGuest::range(kFree, FakeBalloonDriver::kBlock);
  ASSERT_TRUE(b->request(BalloonQueue::kHint, {&block, 1}));
  EXPECT_EQ(b->counters().hints_ignored, 1u);
  EXPECT_TRUE(b->reads(kFree, FakeBalloonDriver::kBlock, 0xaa));
  send_id(b->config().free_page_hint_cmd_id);
  ASSERT_TRUE(b->request(BalloonQueue::kHint, {&block, 1}));
  EXPECT_EQ(b->counters().hints, 1u);
  send_id(VIRTIO_BALLOON_CMD_ID_STOP);
  EXPECT_TRUE(finish().complete);
}

}  // namespace
}  // namespace lethe
