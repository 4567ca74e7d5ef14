// A queue that ends, and one that goes on from where it stood.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "devices/virtio/queue_test_util.h"

namespace lethe {
namespace {

class QueuePositionTest : public testing::TestWithParam<uint64_t> {
 protected:
  QueuePositionTest() { make(); }
  // The queue at the keeper's position.
  void make() {
    rig.queue.reset();
    auto made = Queue::create(*rig.memory, rig.driver.layout(), GetParam(), rig.interrupt,
                              rig.counters, &keeper);
    ASSERT_TRUE(made.has_value()) << made.error().text;
    queue = std::move(*made);
  }
  // Ends the queue, with chains dropped meanwhile kept, and makes the next one.
  void go_on(std::vector<Chain>& held) {
    end(held);
    make();
  }
  void end(std::vector<Chain>& held) {
    keeper.keeps_chains = true;
    held.clear();
    queue.reset();
    keeper.keeps_chains = false;
  }
  uint16_t add() {
    const FakeBuffer buffer{rig.heap.alloc(8), 8, true};
    return rig.driver.add({&buffer, 1}).value();
  }
  QueueRig rig{8, GetParam()};
  QueueKeeper keeper;
  std::unique_ptr<Queue> queue;
};

TEST_P(QueuePositionTest, a_queue_goes_on_where_the_one_before_ended) {
  std::vector<Chain> held;
  for (int round = 0; round < 20; ++round) {
    const uint16_t first = add();
    const uint16_t second = add();
    auto chain = queue->pop();
    ASSERT_TRUE(chain.has_value()) << round;
    EXPECT_EQ(chain->head(), first);
    chain->complete(1);
    go_on(held);
    auto next = queue->pop();
    ASSERT_TRUE(next.has_value()) << queue->broken_reason();
    EXPECT_EQ(next->head(), second);
    next->complete(2);
    EXPECT_FALSE(queue->pop().has_value());
    EXPECT_EQ(rig.driver.poll_used()->written, 1U);
    EXPECT_EQ(rig.driver.poll_used()->written, 2U);
    EXPECT_FALSE(rig.driver.poll_used().has_value());
  }
}

TEST_P(QueuePositionTest, kept_chains_come_first_and_in_order_and_are_completed_once) {
  std::vector<Chain> held;
  std::vector<uint16_t> heads;
  for (int i = 0; i < 3; ++i) heads.push_back(add());
  for (int i = 0; i < 2; ++i) held.push_back(std::move(*queue->pop()));
  end(held);
  EXPECT_EQ(keeper.position.unfinished, (std::vector{heads[0], heads[1]}));
  EXPECT_EQ(keeper.position.next_avail, 2);
  EXPECT_EQ(keeper.position.next_used, 0);
  EXPECT_FALSE(rig.driver.poll_used().has_value()) << "nothing was answered by stopping";
  make();
  EXPECT_TRUE(queue->enable_kicks()) << "there is something to pop";
  // Only one is popped before it ends again: the other one stays kept.
  held.push_back(std::move(*queue->pop()));
  go_on(held);
  for (const uint16_t head : heads) {
    auto chain = queue->pop();
    ASSERT_TRUE(chain.has_value()) << queue->broken_reason();
    EXPECT_EQ(chain->head(), head);
    EXPECT_EQ(chain->writable_bytes(), 8U);
    chain->complete(8);
    EXPECT_EQ(rig.driver.poll_used()->head, head);
  }
  EXPECT_FALSE(queue->pop().has_value());
  EXPECT_FALSE(queue->enable_kicks());
}

TEST_P(QueuePositionTest, a_dropped_chain_is_completed_while_nobody_keeps_it) {
  const uint16_t head = add();
  (void)queue->pop();
  const auto used = rig.driver.poll_used();
  ASSERT_TRUE(used.has_value());
  EXPECT_EQ(used->head, head);
  EXPECT_EQ(used->written, 0U);
}

TEST_P(QueuePositionTest, a_kept_chain_made_available_again_breaks_the_queue) {
  std::vector<Chain> held;
  const uint16_t head = add();
  held.push_back(std::move(*queue->pop()));
  go_on(held);
  held.push_back(std::move(*queue->pop()));
  rig.driver.raw_publish(head);
  EXPECT_FALSE(queue->pop().has_value());
  EXPECT_TRUE(queue->broken());
  held.clear();
}

TEST_P(QueuePositionTest, a_kept_chain_whose_descriptors_were_spoilt_breaks_the_queue) {
  std::vector<Chain> held;
  const uint16_t head = add();
  held.push_back(std::move(*queue->pop()));
  end(held);
  rig.driver.raw_descriptor(head, {.addr = 1ull << 40, .len = 1, .flags = 0, .next = 0});
  make();
  EXPECT_FALSE(queue->pop().has_value());
  EXPECT_TRUE(queue->broken());
}

TEST_P(QueuePositionTest, a_broken_queue_stays_broken) {
  std::vector<Chain> held;
  rig.driver.raw_publish(99);
  EXPECT_FALSE(queue->pop().has_value());
  ASSERT_TRUE(queue->broken());
  go_on(held);
  EXPECT_TRUE(queue->broken());
  EXPECT_STRNE(queue->broken_reason(), "");
  EXPECT_FALSE(queue->pop().has_value());
  EXPECT_EQ(rig.counters.rejected, 1U) << "counted once";
}

TEST_P(QueuePositionTest, nothing_is_lost_over_wrapping_indices) {
  std::mt19937 random(1);
  std::vector<Chain> held;
  std::vector<uint16_t> waiting;  // heads made available and not used
  uint64_t completed = 0;
  while (completed < 70'000) {  // past 2^16
    for (int i = 0; i < 3 && rig.driver.free_descriptors() > 0; ++i) {
      const FakeBuffer buffer{GuestAddr{QueueRig::kFreeStart}, 8, true};
      waiting.push_back(*rig.driver.add({&buffer, 1}));
    }
    while (auto chain = queue->pop()) held.push_back(std::move(*chain));
    ASSERT_FALSE(queue->broken()) << queue->broken_reason();
    std::shuffle(held.begin(), held.end(), random);
    for (size_t left = random() % (held.size() + 1); left > 0; --left) {
      held.back().complete(8);
      held.pop_back();
      ++completed;
    }
    while (const auto used = rig.driver.poll_used())
      ASSERT_EQ(std::erase(waiting, used->head), 1U) << "used twice, or never made available";
    if (random() % 8 == 0) go_on(held);
    ASSERT_EQ(waiting.size(), rig.driver.outstanding());
  }
  go_on(held);
  while (auto chain = queue->pop()) chain->complete(8);
  while (const auto used = rig.driver.poll_used()) std::erase(waiting, used->head);
  EXPECT_TRUE(waiting.empty());
}

INSTANTIATE_TEST_SUITE_P(Features, QueuePositionTest, testing::Values(0, kRingFeatures));

TEST(QueuePosition, refuses_what_no_queue_can_have_left) {
  EXPECT_TRUE(check_position({}, 8));
  EXPECT_TRUE(check_position({5, 3, false, {7, 0}}, 8));
  EXPECT_TRUE(check_position({1, 0xffff, false, {1, 2}}, 8));
  EXPECT_TRUE(check_position({5, 3, true, {}}, 8));
  EXPECT_FALSE(check_position({5, 3, false, {}}, 8)) << "a chain that is nowhere";
  EXPECT_FALSE(check_position({3, 5, false, {}}, 8)) << "used before it was available";
  EXPECT_FALSE(check_position({5, 3, false, {7, 7}}, 8)) << "a head twice";
  EXPECT_FALSE(check_position({5, 3, false, {7, 8}}, 8)) << "a head outside";
  EXPECT_FALSE(check_position({9, 0, false, {0, 1, 2, 3, 4, 5, 6, 7, 0}}, 8)) << "too many";
  QueueRig rig(8);
  rig.queue.reset();
  QueueKeeper keeper;
  keeper.position = {2, 0, false, {1, 9}};
  EXPECT_FALSE(
      Queue::create(*rig.memory, rig.driver.layout(), 0, rig.interrupt, rig.counters, &keeper));
}

}  // namespace
}  // namespace lethe
