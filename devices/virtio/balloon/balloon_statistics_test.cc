#include <gtest/gtest.h>

#include <future>

#include "devices/virtio/balloon/balloon_test_util.h"

namespace lethe {
namespace {

using namespace std::chrono_literals;

class BalloonStatisticsTest : public testing::Test {
 protected:
  BalloonStatisticsTest() : index(b.index(BalloonQueue::kStatistics)) {}
  // Makes a buffer available, as the driver does at its start and after each used one.
  void supply(const std::vector<virtio_balloon_stat>& entries, size_t cut = 0) {
    // SAFETY: packed structures of integers, seen as their bytes.
    const GuestAddr at = b.guest->heap().put({reinterpret_cast<const uint8_t*>(entries.data()),
                                              entries.size() * sizeof(virtio_balloon_stat)});
    const FakeBuffer buffer{
        at, static_cast<uint32_t>(entries.size() * sizeof(virtio_balloon_stat) - cut), false};
    ASSERT_TRUE(b.guest->driver(index).add({&buffer, 1}));
    b.guest->kick_if_wanted(index);
  }
  bool wait_asked() {
    return b.guest->driver(index)
        .wait_used(b.guest->interrupt(index), deadline_in(FakeTransport::kPatience))
        .has_value();
  }
  bool wait_answers(uint64_t count) {
    return eventually([&] { return b.counters().statistics >= count; });
  }
  std::future<BalloonStatistics> request() {
    auto promise = std::make_shared<std::promise<BalloonStatistics>>();
    b.device->request_statistics(
        [promise](BalloonStatistics answer) { promise->set_value(std::move(answer)); });
    return promise->get_future();
  }
  BalloonGuest b;
  uint16_t index;
};

TEST_F(BalloonStatisticsTest, the_first_buffer_is_kept_until_statistics_are_wanted) {
  supply({{VIRTIO_BALLOON_S_MEMFREE, 100}});
  ASSERT_TRUE(wait_answers(1));
  EXPECT_EQ(b.device->statistics().tags[VIRTIO_BALLOON_S_MEMFREE], 100u);
  EXPECT_FALSE(b.guest->driver(index).poll_used());
  auto answer = request();
  ASSERT_TRUE(wait_asked());
  supply({{VIRTIO_BALLOON_S_MEMFREE, 200}, {VIRTIO_BALLOON_S_MEMTOT, 300}});
  ASSERT_EQ(answer.wait_for(10s), std::future_status::ready);
  const BalloonStatistics got = answer.get();
  EXPECT_EQ(got.tags.at(VIRTIO_BALLOON_S_MEMFREE), 200u);
  EXPECT_EQ(got.tags.at(VIRTIO_BALLOON_S_MEMTOT), 300u);
  EXPECT_NE(got.when.time_since_epoch().count(), 0);
}

TEST_F(BalloonStatisticsTest, all_16_tags_and_unknown_ones_are_kept_by_number) {
  std::vector<virtio_balloon_stat> entries;
  for (uint16_t tag = 0; tag < kBalloonStatNamed; ++tag) entries.push_back({tag, 1000u + tag});
  entries.push_back({40000, UINT64_MAX});
  supply(entries);
  ASSERT_TRUE(wait_answers(1));
  const auto tags = b.device->statistics().tags;
  EXPECT_EQ(tags.size(), 17u);
  for (uint16_t tag = 0; tag < kBalloonStatNamed; ++tag) {
    EXPECT_EQ(tags.at(tag), 1000u + tag);
    EXPECT_NE(balloon_stat_name(tag), nullptr);
  }
  EXPECT_EQ(tags.at(40000), UINT64_MAX);
  EXPECT_STREQ(balloon_stat_name(kBalloonStatDirectReclaim), "direct_reclaim_bytes");
  EXPECT_EQ(balloon_stat_name(kBalloonStatNamed), nullptr);
}

TEST_F(BalloonStatisticsTest, any_length_is_bounded) {
  std::vector<virtio_balloon_stat> entries;
  for (uint16_t i = 0; i < 6000; ++i) entries.push_back({i, i});
  supply(entries);
  ASSERT_TRUE(wait_answers(1));
  EXPECT_EQ(b.device->statistics().tags.size(), BalloonWork::kStatisticsMax);
  // Cut in the middle of an entry; shorter than one; of no length at all.
  auto answer = request();
  ASSERT_TRUE(wait_asked());
  supply({{1, 1}, {2, 2}}, 3);
  ASSERT_EQ(answer.wait_for(10s), std::future_status::ready);
  EXPECT_EQ(answer.get().tags.size(), 1u);
  answer = request();
  ASSERT_TRUE(wait_asked());
  supply({{1, 1}}, 1);
  ASSERT_EQ(answer.wait_for(10s), std::future_status::ready);
  EXPECT_TRUE(answer.get().tags.empty());
  answer = request();
  ASSERT_TRUE(wait_asked());
  supply({{1, 1}}, 10);
  ASSERT_EQ(answer.wait_for(10s), std::future_status::ready);
  EXPECT_TRUE(answer.get().tags.empty());
  EXPECT_EQ(b.guest->needs_reset_count(), 0u);
}

TEST_F(BalloonStatisticsTest, a_writable_buffer_is_no_answer) {
  const FakeBuffer buffer = BalloonGuest::range(BalloonGuest::kFree, 100);
  ASSERT_TRUE(b.guest->driver(index).add({&buffer, 1}));
  b.guest->kick_if_wanted(index);
  EXPECT_TRUE(eventually([&] { return b.counters().chains_refused == 1; }));
  EXPECT_EQ(b.counters().statistics, 0u);
  auto answer = request();  // the buffer still serves to ask
  ASSERT_TRUE(wait_asked());
  supply({{1, 1}});
  ASSERT_EQ(answer.wait_for(10s), std::future_status::ready);
  EXPECT_EQ(answer.get().tags.size(), 1u);
}

TEST_F(BalloonStatisticsTest, more_than_one_buffer_waits_in_the_ring) {
  for (uint64_t i = 1; i <= 3; ++i) supply({{VIRTIO_BALLOON_S_MEMFREE, i}});
  ASSERT_TRUE(wait_answers(1));
  for (uint64_t i = 2; i <= 3; ++i) {
    auto answer = request();
    ASSERT_TRUE(wait_asked());
    b.guest->kick(index);
    ASSERT_EQ(answer.wait_for(10s), std::future_status::ready);
    EXPECT_EQ(answer.get().tags.at(VIRTIO_BALLOON_S_MEMFREE), i);
  }
  EXPECT_EQ(b.counters().statistics, 3u);
}

TEST_F(BalloonStatisticsTest, several_who_ask_share_an_answer) {
  supply({{1, 1}});
  ASSERT_TRUE(wait_answers(1));
  std::vector<std::future<BalloonStatistics>> answers;
  for (int i = 0; i < 10; ++i) answers.push_back(request());
  ASSERT_TRUE(wait_asked());
  supply({{1, 2}});
  for (auto& answer : answers) {
    ASSERT_EQ(answer.wait_for(10s), std::future_status::ready);
    EXPECT_EQ(answer.get().tags.at(1), 2u);
  }
  EXPECT_EQ(b.counters().statistics, 2u);
}

TEST_F(BalloonStatisticsTest, a_driver_that_does_not_answer_costs_only_the_deadline) {
  supply({{1, 1}});
  ASSERT_TRUE(wait_answers(1));
  auto answer = request();
  ASSERT_TRUE(wait_asked());
  ASSERT_EQ(answer.wait_for(10s), std::future_status::ready);
  EXPECT_EQ(answer.get().tags.at(1), 1u) << "what is known";
  EXPECT_EQ(b.counters().statistics_late, 1u);
  // It has no buffer to ask with: the answer is at once what is known.
  EXPECT_EQ(request().wait_for(10s), std::future_status::ready);
  supply({{1, 3}});  // late, but welcome
  ASSERT_TRUE(wait_answers(2));
  EXPECT_EQ(b.device->statistics().tags.at(1), 3u);
}

TEST_F(BalloonStatisticsTest, a_reset_answers_those_who_wait) {
  supply({{1, 1}});
  ASSERT_TRUE(wait_answers(1));
  auto answer = request();
  ASSERT_TRUE(wait_asked());
  b.guest->reset();
  EXPECT_EQ(answer.wait_for(10s), std::future_status::ready);
}

TEST(BalloonStatisticsAbsent, without_the_queue_what_is_known_comes_at_once) {
  BalloonGuest b(128 * kMiB, {.statistics = false});
  std::promise<BalloonStatistics> promise;
  b.device->request_statistics(
      [&](BalloonStatistics answer) { promise.set_value(std::move(answer)); });
  auto answer = promise.get_future();
  ASSERT_EQ(answer.wait_for(10s), std::future_status::ready);
  EXPECT_TRUE(answer.get().tags.empty());
}

}  // namespace
}  // namespace lethe
