// A balloon that is frozen, and one that goes on from what it saved.
#include <gtest/gtest.h>

#include <future>

#include "devices/virtio/balloon/fake_balloon_driver.h"

namespace lethe {
namespace {

using namespace std::chrono_literals;

// Another device on the guest's memory.
struct OtherBalloon {
  explicit OtherBalloon(BalloonGuest& b, const BalloonOptions& options = {})
      : pipeline(*b.memory, {}), device(BalloonDevice::create(*b.memory, pipeline, options)) {}
  [[nodiscard]] virtio_balloon_config config() const {
    virtio_balloon_config config{};
    // SAFETY: the structure, seen as its bytes.
    device->read_config(0, {reinterpret_cast<uint8_t*>(&config), sizeof config});
    return config;
  }
  ReturnPipeline pipeline;
  std::unique_ptr<BalloonDevice> device;
};

TEST(BalloonFreezeTest, the_statistics_buffer_is_kept_over_a_freeze_and_asked_for_afterwards) {
  BalloonGuest b;
  const uint16_t index = b.index(BalloonQueue::kStatistics);
  const virtio_balloon_stat entry{VIRTIO_BALLOON_S_MEMFREE, 77};
  // SAFETY: a packed structure of integers, seen as its bytes.
  const GuestAddr at =
      b.guest->heap().put({reinterpret_cast<const uint8_t*>(&entry), sizeof entry});
  const FakeBuffer buffer{at, sizeof entry, false};
  ASSERT_TRUE(b.guest->driver(index).add({&buffer, 1}));
  b.guest->kick_if_wanted(index);
  ASSERT_TRUE(eventually([&] { return b.counters().statistics >= 1; }));
  for (int i = 0; i < 20; ++i) {
    b.guest->freeze();
    EXPECT_EQ(b.guest->position(index).unfinished.size(), 1u);
    EXPECT_FALSE(b.guest->driver(index).poll_used())
        << "Linux would take it for a question and send another buffer";
    b.guest->thaw();
  }
  // Once more in another device; what was known is known there.
  b.guest->freeze();
  const auto state = b.guest->save();
  OtherBalloon other(b);
  ASSERT_TRUE(b.guest->move_to(*other.device, state));
  EXPECT_EQ(other.device->statistics().tags.at(VIRTIO_BALLOON_S_MEMFREE), 77u);
  b.guest->thaw();
  std::promise<BalloonStatistics> answer;
  other.device->request_statistics(
      [&](BalloonStatistics got) { answer.set_value(std::move(got)); });
  ASSERT_TRUE(b.guest->driver(index).wait_used(b.guest->interrupt(index),
                                               deadline_in(FakeTransport::kPatience)));
  ASSERT_TRUE(b.guest->driver(index).add({&buffer, 1}));
  b.guest->kick_if_wanted(index);
  auto future = answer.get_future();
  ASSERT_EQ(future.wait_for(10s), std::future_status::ready);
  b.guest->reset();
}

TEST(BalloonFreezeTest, sizes_and_target_go_on_in_another_device) {
  BalloonGuest b;
  b.device->set_target(8 * kMiB);
  ASSERT_TRUE(b.guest->wait_config_changes());
  ASSERT_TRUE(b.inflate({20000u, 20001u}));
  b.write_config(offsetof(virtio_balloon_config, actual), 2);
  b.guest->freeze();
  const auto state = b.guest->save();
  OtherBalloon other(b);
  ASSERT_TRUE(b.guest->move_to(*other.device, state));
  EXPECT_EQ(other.device->target(), 8 * kMiB);
  EXPECT_EQ(other.config().num_pages, 2048u);
  EXPECT_EQ(other.device->actual(), 2 * kPage);
  b.guest->thaw();
  EXPECT_TRUE(b.reads(20000 * kPage, 2 * kPage, 0));
  ASSERT_TRUE(b.inflate({20002u}));
  EXPECT_EQ(other.device->counters().inflated_pages, 1u);
  b.guest->reset();
}

TEST(BalloonFreezeTest, freezes_under_reports_lose_none_and_forget_all_that_was_reported) {
  BalloonGuest b;
  const uint16_t index = b.index(BalloonQueue::kReport);
  std::atomic<bool> stop{false};
  std::atomic<bool> lost{false};
  std::thread driver([&] {
    while (!stop && !lost) {
      fill(*b.memory, BalloonGuest::kFree, 4 * kMiB, 0xaa);
      for (uint64_t i = 0; i < 4; ++i) {
        const FakeBuffer buffer = BalloonGuest::range(BalloonGuest::kFree + i * kMiB, kMiB);
        if (!b.guest->driver(index).add({&buffer, 1})) lost = true;
      }
      b.guest->kick_if_wanted(index);
      for (int i = 0; i < 4; ++i)
        if (!b.guest->driver(index).wait_used(b.guest->interrupt(index),
                                              deadline_in(FakeTransport::kPatience)))
          lost = true;
      if (!b.reads(BalloonGuest::kFree, 4 * kMiB, 0)) lost = true;
    }
  });
  for (int i = 0; i < 300 && !lost; ++i) {
    b.guest->freeze();
    b.guest->thaw();
  }
  stop = true;
  driver.join();
  EXPECT_FALSE(lost);
  EXPECT_EQ(b.guest->needs_reset_count(), 0u);
}

TEST(BalloonFreezeTest, a_pull_under_way_ends_and_its_blocks_are_the_guests_again) {
  BalloonGuest b;
  FakeBalloonDriver driver(b);
  for (uint64_t i = 0; i < 8; ++i)
    driver.blocks.push_back(BalloonGuest::kFree + i * FakeBalloonDriver::kBlock);
  for (const uint64_t block : driver.blocks)
    fill(*b.memory, block, FakeBalloonDriver::kBlock, 0xaa);
  std::promise<PullResult> ended;
  b.device->pull(UINT64_MAX, {}, [&](PullResult result) { ended.set_value(std::move(result)); });
  ASSERT_TRUE(eventually([&] {
    driver.work();
    return !driver.held.empty();
  }));
  b.guest->freeze();
  auto future = ended.get_future();
  ASSERT_EQ(future.wait_for(10s), std::future_status::ready);
  EXPECT_FALSE(future.get().complete);
  const auto state = b.guest->save();
  OtherBalloon other(b);
  ASSERT_TRUE(b.guest->move_to(*other.device, state));
  EXPECT_EQ(other.config().free_page_hint_cmd_id, VIRTIO_BALLOON_CMD_ID_DONE);
  EXPECT_EQ(other.config().num_pages, 0u);
  b.guest->thaw();
  // The next pull's command id is none that the guest has seen. The driver may owe its statistics
  // from before: then that pull ends at once, and another one is due.
  std::atomic<bool> over{true};
  const uint32_t last = driver.ids.back();
  EXPECT_TRUE(eventually([&] {
    driver.work();
    if (over.exchange(false))
      other.device->pull(4 * kMiB, {}, [&](const PullResult&) { over = true; });
    return other.config().free_page_hint_cmd_id > last;
  }));
  b.guest->reset();
  EXPECT_TRUE(over);
}

TEST(BalloonFreezeTest, a_guest_that_poisons_its_free_pages_is_not_saved) {
  BalloonGuest b;
  EXPECT_TRUE(b.device->can_save());
  b.write_config(offsetof(virtio_balloon_config, poison_val), 0xaaaaaaaa);
  const auto possible = b.device->can_save();
  ASSERT_FALSE(possible);
  EXPECT_NE(possible.error().text.find("poison"), std::string::npos);
}

TEST(BalloonFreezeTest, hostile_state_is_refused) {
  BalloonGuest b;
  b.device->set_target(kMiB);
  ASSERT_TRUE(b.guest->wait_config_changes());
  b.guest->freeze();
  const auto state = b.guest->save();
  for (size_t size = 0; size < state.size(); ++size)
    EXPECT_FALSE(b.guest->move_to(*b.device, std::span(state).first(size))) << size;
  auto target = state;
  target[3] = 0xff;  // pages
  EXPECT_FALSE(b.guest->move_to(*b.device, target));
  auto hint = state;
  hint[8] = 7;  // a command under way
  EXPECT_FALSE(b.guest->move_to(*b.device, hint));
  auto statistics = state;
  statistics[16 + 3] = 0xff;
  EXPECT_FALSE(b.guest->move_to(*b.device, statistics));
  EXPECT_TRUE(b.guest->move_to(*b.device, state));
  EXPECT_EQ(b.config().num_pages, kMiB / kPage);
  b.guest->thaw();
  EXPECT_TRUE(b.inflate({20000u}));
}

}  // namespace
}  // namespace lethe
