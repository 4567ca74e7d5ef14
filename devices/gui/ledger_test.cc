// The ledger's rules, each by itself. ledger_model_test.cc has them all at once.
#include "devices/gui/ledger.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace lethe {
namespace {

using State = ShareLedger::State;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr ShareLedger::Clock::time_point kStart{seconds(1000)};

class FakeOwner : public ShareLedger::Owner {
 public:
  Release release(BufferId id, uint64_t, bool revoked) override {
    std::this_thread::sleep_for(release_takes);
    if (steps > 1) {
      --steps;
      return Release::kMore;
    }
    (revoked ? revoked_releases : releases).push_back(id);
    return refuses_release ? Release::kRefused : Release::kDone;
  }
  bool revoke(BufferId id, uint64_t, uint32_t holders) override {
    revocations.push_back(id);
    revoked_holders = holders;
    std::this_thread::sleep_for(revoke_takes);
    return !refuses_revoke;
  }
  std::vector<BufferId> releases;
  std::vector<BufferId> revoked_releases;
  std::vector<BufferId> revocations;
  uint32_t revoked_holders = 0;
  // What a slow host takes for it; a pass is bounded by time, too. Nothing is waited for.
  milliseconds release_takes{0};
  milliseconds revoke_takes{0};
  int steps = 1;  // of the next release
  bool refuses_release = false;
  bool refuses_revoke = false;
};

class LedgerTest : public testing::Test {
 protected:
  // Held by `holders` (bits), and given up by the guest.
  BufferId orphan(uint64_t bytes, uint32_t holders, ShareLedger::Clock::time_point at = kStart) {
    const BufferId id = ledger.add(bytes).value();
    for (unsigned holder = 0; holder < ShareLedger::kHoldersMax; ++holder)
      if ((holders >> holder & 1) != 0) EXPECT_TRUE(ledger.hold(id, holder));
    EXPECT_TRUE(ledger.guest_gone(id, at));
    return id;
  }
  void run_all() {
    while (ledger.run_pass()) continue;
  }
  [[nodiscard]] uint64_t stale() const { return ledger.counters().stale; }

  FakeOwner owner;
  ShareLedger ledger{8, {}, owner, std::chrono::hours(1)};
  const LedgerCounters& counters = ledger.counters();
};

TEST_F(LedgerTest, what_nobody_holds_is_free_when_the_guest_lets_go) {
  const BufferId id = ledger.add(4096).value();
  EXPECT_EQ(ledger.state(id), State::kLive);
  EXPECT_TRUE(ledger.guest_gone(id, kStart));
  EXPECT_EQ(ledger.state(id), State::kFree);
  EXPECT_TRUE(owner.releases.empty()) << "only a pass releases";
  EXPECT_FALSE(ledger.run_pass());
  EXPECT_EQ(owner.releases, std::vector{id});
  EXPECT_EQ(ledger.state(id), State::kUnused);
  EXPECT_EQ(counters.freed.bytes, 4096U);
}

TEST_F(LedgerTest, an_orphan_is_free_when_its_last_holder_has_unmapped) {
  const BufferId id = orphan(4096, 0b11);
  EXPECT_EQ(ledger.state(id), State::kOrphan);
  EXPECT_TRUE(ledger.unmapped(id, 0));
  EXPECT_EQ(ledger.state(id), State::kOrphan);
  EXPECT_FALSE(ledger.run_pass());
  EXPECT_TRUE(ledger.unmapped(id, 1));
  EXPECT_EQ(ledger.state(id), State::kFree);
}

TEST_F(LedgerTest, frontends_may_unmap_before_the_guest_lets_go) {
  const BufferId id = ledger.add(4096).value();
  EXPECT_TRUE(ledger.hold(id, 3));
  EXPECT_TRUE(ledger.unmapped(id, 3));
  EXPECT_EQ(ledger.state(id), State::kLive);
  EXPECT_TRUE(ledger.guest_gone(id, kStart));
  EXPECT_EQ(ledger.state(id), State::kFree);
}

TEST_F(LedgerTest, a_process_that_ends_lets_go_of_all_it_held) {
  const BufferId alone = orphan(1, 0b01);
  const BufferId shared = orphan(2, 0b11);
  const BufferId live = ledger.add(4).value();
  EXPECT_TRUE(ledger.hold(live, 0));
  ledger.holder_gone(0);
  EXPECT_EQ(ledger.state(alone), State::kFree);
  EXPECT_EQ(ledger.state(shared), State::kOrphan);
  EXPECT_EQ(ledger.holders(shared), 0b10U);
  EXPECT_EQ(ledger.state(live), State::kLive);
  EXPECT_EQ(ledger.holders(live), 0U);
}

TEST_F(LedgerTest, only_what_is_live_can_be_held_or_let_go) {
  const BufferId id = orphan(1, 0b1);
  EXPECT_FALSE(ledger.hold(id, 1));
  EXPECT_FALSE(ledger.guest_gone(id, kStart));
  EXPECT_TRUE(ledger.unmapped(id, 0));
  EXPECT_FALSE(ledger.hold(id, 1));
  EXPECT_FALSE(ledger.guest_gone(id, kStart));
  run_all();
  EXPECT_FALSE(ledger.hold(id, 1));
  EXPECT_FALSE(ledger.guest_gone(id, kStart));
  EXPECT_FALSE(ledger.hold({}, 1));
  EXPECT_FALSE(ledger.hold({.slot = 1'000'000, .generation = id.generation}, 1));
}

TEST_F(LedgerTest, a_stale_acknowledgement_does_not_reach_the_slots_next_buffer) {
  ShareLedger small(1, {}, owner);
  const BufferId first = small.add(1).value();
  EXPECT_TRUE(small.hold(first, 0));
  EXPECT_TRUE(small.unmapped(first, 0));
  EXPECT_TRUE(small.guest_gone(first, kStart));
  EXPECT_FALSE(small.run_pass());
  const BufferId second = small.add(1).value();
  ASSERT_EQ(second.slot, first.slot);
  ASSERT_NE(second.generation, first.generation);
  EXPECT_TRUE(small.hold(second, 0));
  EXPECT_FALSE(small.unmapped(first, 0));
  EXPECT_EQ(small.holders(second), 1U);
  // The slot's third use, with answers for both before.
  EXPECT_TRUE(small.unmapped(second, 0));
  EXPECT_TRUE(small.guest_gone(second, kStart));
  EXPECT_FALSE(small.run_pass());
  const BufferId third = small.add(1).value();
  EXPECT_TRUE(small.hold(third, 0));
  EXPECT_FALSE(small.unmapped(first, 0));
  EXPECT_FALSE(small.unmapped(second, 0));
  EXPECT_EQ(small.holders(third), 1U);
  EXPECT_EQ(small.counters().stale, 3U);
}

TEST_F(LedgerTest, an_acknowledgement_said_twice_counts_once) {
  const BufferId id = orphan(1, 0b11);
  EXPECT_TRUE(ledger.unmapped(id, 0));
  EXPECT_FALSE(ledger.unmapped(id, 0));
  EXPECT_EQ(ledger.state(id), State::kOrphan) << "the other one still holds it";
  EXPECT_EQ(stale(), 1U);
}

TEST_F(LedgerTest, an_acknowledgement_of_what_one_does_not_hold_is_stale) {
  const BufferId id = orphan(1, 0b01);
  EXPECT_FALSE(ledger.unmapped(id, 1));
  EXPECT_EQ(ledger.state(id), State::kOrphan);
  EXPECT_EQ(stale(), 1U);
}

TEST_F(LedgerTest, an_acknowledgement_after_revocation_is_stale) {
  ledger.set_limits({.orphans_max = 0});
  const BufferId id = orphan(1, 0b1);
  EXPECT_FALSE(ledger.enforce_limits(kStart));
  EXPECT_EQ(owner.revocations, std::vector{id});
  EXPECT_EQ(owner.revoked_holders, 0b1U);
  EXPECT_FALSE(ledger.unmapped(id, 0)) << "before its release";
  run_all();
  EXPECT_FALSE(ledger.unmapped(id, 0)) << "after it";
  const BufferId next = ledger.add(1).value();
  EXPECT_TRUE(ledger.hold(next, 0));
  EXPECT_FALSE(ledger.unmapped(id, 0)) << "and when the slot is used again";
  EXPECT_EQ(ledger.holders(next), 1U);
  EXPECT_EQ(stale(), 3U);
  EXPECT_EQ(owner.revoked_releases, std::vector{id});
  EXPECT_EQ(counters.revoked.buffers, 1U);
  EXPECT_EQ(counters.freed.buffers, 0U);
}

TEST_F(LedgerTest, limit_on_bytes_revokes_the_oldest) {
  ledger.set_limits({.orphan_bytes_max = 100});
  const BufferId a = orphan(60, 1);
  const BufferId b = orphan(30, 1);
  EXPECT_TRUE(ledger.enforce_limits(kStart));
  EXPECT_TRUE(owner.revocations.empty());
  const BufferId c = orphan(50, 1);
  EXPECT_TRUE(ledger.enforce_limits(kStart));
  EXPECT_EQ(owner.revocations, std::vector{a});
  EXPECT_EQ(ledger.state(b), State::kOrphan);
  EXPECT_EQ(ledger.state(c), State::kOrphan);
  EXPECT_EQ(counters.orphan.bytes, 80U);
}

TEST_F(LedgerTest, limit_on_count_revokes_the_oldest) {
  ledger.set_limits({.orphans_max = 2});
  const BufferId a = orphan(1, 1);
  const BufferId b = orphan(1, 1);
  const BufferId c = orphan(1, 1);
  EXPECT_TRUE(ledger.unmapped(b, 0)) << "out of the middle of the list";
  EXPECT_TRUE(ledger.enforce_limits(kStart));
  EXPECT_TRUE(owner.revocations.empty());
  (void)orphan(1, 1);
  EXPECT_TRUE(ledger.enforce_limits(kStart));
  EXPECT_EQ(owner.revocations, std::vector{a});
  EXPECT_EQ(ledger.state(c), State::kOrphan);
}

TEST_F(LedgerTest, limit_on_age_revokes_the_oldest_and_says_when_the_next_is_due) {
  ledger.set_limits({.orphan_age_max = seconds(10)});
  EXPECT_EQ(ledger.enforce_limits(kStart), std::nullopt);
  const BufferId a = orphan(1, 1, kStart);
  const BufferId b = orphan(1, 1, kStart + seconds(4));
  EXPECT_EQ(ledger.enforce_limits(kStart + milliseconds(9'999)), kStart + seconds(10));
  EXPECT_TRUE(owner.revocations.empty());
  EXPECT_EQ(ledger.enforce_limits(kStart + seconds(10)), kStart + seconds(14));
  EXPECT_EQ(owner.revocations, std::vector{a});
  EXPECT_EQ(ledger.enforce_limits(kStart + seconds(14)), std::nullopt);
  EXPECT_EQ(owner.revocations, (std::vector{a, b}));
}

TEST_F(LedgerTest, an_age_without_bound_is_never_due) {
  ledger.set_limits({.orphan_age_max = std::chrono::nanoseconds::max()});
  (void)orphan(1, 1);
  EXPECT_EQ(ledger.enforce_limits(kStart + std::chrono::hours(10'000)),
            ShareLedger::Clock::time_point::max());
}

TEST_F(LedgerTest, a_run_of_revocations_is_bounded_in_time_and_goes_on_at_once) {
  ShareLedger bounded(8, {.orphans_max = 0}, owner, milliseconds(5));
  owner.revoke_takes = milliseconds(3);
  for (int i = 0; i < 6; ++i) {
    const BufferId id = bounded.add(1).value();
    (void)bounded.hold(id, 0);
    (void)bounded.guest_gone(id, kStart);
  }
  EXPECT_EQ(bounded.enforce_limits(kStart), kStart);
  EXPECT_LE(owner.revocations.size(), 2U);
  for (int i = 0; i < 10 && bounded.enforce_limits(kStart); ++i) continue;
  EXPECT_EQ(owner.revocations.size(), 6U);
}

TEST_F(LedgerTest, a_pass_releases_free_per_iteration_and_says_that_more_is_left) {
  ledger.set_free_per_iteration(2);
  for (int i = 0; i < 5; ++i) (void)orphan(1, 0);
  EXPECT_TRUE(ledger.run_pass());
  EXPECT_EQ(owner.releases.size(), 2U);
  EXPECT_EQ(counters.freeing.buffers, 3U);
  ledger.set_free_per_iteration(1);  // takes effect with the next pass
  EXPECT_TRUE(ledger.run_pass());
  EXPECT_EQ(owner.releases.size(), 3U);
  ledger.set_free_per_iteration(2);
  EXPECT_FALSE(ledger.run_pass());
  EXPECT_EQ(counters.passes, 3U);
  EXPECT_FALSE(ledger.run_pass()) << "nothing to do";
  EXPECT_EQ(counters.passes, 3U);
}

TEST_F(LedgerTest, a_pass_without_limit_releases_everything) {
  ShareLedger large(20'000, {}, owner, std::chrono::hours(1));
  large.set_free_per_iteration(0);
  for (int i = 0; i < 20'000; ++i) (void)large.guest_gone(large.add(1).value(), kStart);
  EXPECT_FALSE(large.run_pass());
  EXPECT_EQ(owner.releases.size(), 20'000U);
}

TEST_F(LedgerTest, a_pass_is_bounded_in_time_whatever_free_per_iteration_says) {
  ShareLedger bounded(8, {}, owner, milliseconds(5));
  bounded.set_free_per_iteration(0);
  owner.release_takes = milliseconds(6);
  constexpr uint64_t kBig = 1 << 20;  // looked at one by one
  for (int i = 0; i < 3; ++i) (void)bounded.guest_gone(bounded.add(kBig).value(), kStart);
  EXPECT_TRUE(bounded.run_pass());
  EXPECT_EQ(owner.releases.size(), 1U);
  EXPECT_GE(bounded.counters().pass_ns_max, 6'000'000U);
}

TEST_F(LedgerTest, a_large_buffer_is_released_in_steps_over_several_passes) {
  ShareLedger bounded(8, {}, owner, milliseconds(5));
  owner.steps = 3;
  owner.release_takes = milliseconds(6);
  constexpr uint64_t kBig = 1 << 20;
  const BufferId id = bounded.add(kBig).value();
  EXPECT_TRUE(bounded.guest_gone(id, kStart));
  for (const int step : {1, 2}) {
    EXPECT_TRUE(bounded.run_pass()) << step;
    EXPECT_EQ(bounded.state(id), State::kFree) << step;
    EXPECT_EQ(bounded.counters().freeing.bytes, kBig) << step;
    EXPECT_EQ(bounded.counters().freed.buffers, 0U) << step;
  }
  EXPECT_FALSE(bounded.run_pass());
  EXPECT_EQ(bounded.state(id), State::kUnused);
  EXPECT_EQ(bounded.counters().freed.bytes, kBig);
  EXPECT_EQ(owner.releases, std::vector{id});
}

TEST_F(LedgerTest, when_all_entries_are_in_use_add_says_so_and_nothing_is_dropped) {
  std::vector<BufferId> orphans;
  for (int i = 0; i < 8; ++i) orphans.push_back(orphan(1, 1));
  EXPECT_EQ(ledger.add(1), std::nullopt);
  for (const BufferId id : orphans) EXPECT_EQ(ledger.state(id), State::kOrphan);
  EXPECT_TRUE(ledger.unmapped(orphans[5], 0));
  EXPECT_EQ(ledger.add(1), std::nullopt) << "a slot is free only when it was released";
  run_all();
  EXPECT_TRUE(ledger.add(1));
  EXPECT_EQ(counters.orphan.buffers, 7U);
}

TEST_F(LedgerTest, what_the_host_refuses_is_counted_as_leaked_once) {
  owner.refuses_release = true;
  (void)orphan(10, 0);
  run_all();
  EXPECT_EQ(counters.leaked.buffers, 1U);
  EXPECT_EQ(counters.leaked.bytes, 10U);
  EXPECT_EQ(counters.freed.buffers, 0U);
  owner.refuses_release = false;
  owner.refuses_revoke = true;
  (void)orphan(20, 1);
  EXPECT_TRUE(ledger.revoke_oldest());
  EXPECT_FALSE(ledger.revoke_oldest());
  run_all();
  EXPECT_EQ(counters.leaked.buffers, 2U);
  EXPECT_EQ(counters.leaked.bytes, 30U);
  EXPECT_EQ(counters.revoked.buffers, 0U);
}

}  // namespace
}  // namespace lethe
