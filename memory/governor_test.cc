#include "memory/governor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kTotal = 16 * kGiB;

GovernorOptions options(bool adjust) {
  return {.guest_size = 4 * kGiB, .pool_max = 512 * kMiB, .adjust = adjust};
}

// A guest of 4 GiB that uses 1 GiB, and has the rest free but for some cache.
Observation at(int second, uint64_t available) {
  Observation seen;
  seen.now = seconds(second);
  seen.host.total = kTotal;
  seen.host.available = available;
  seen.guest = GuestView{.free = 2 * kGiB, .available = 3 * kGiB};
  seen.resident = 2 * kGiB;
  return seen;
}

bool changed(const Decision& decision, std::string_view what) {
  return std::any_of(decision.changes.begin(), decision.changes.end(),
                     [&](const DecisionChange& change) { return change.what == what; });
}

TEST(Governor, idle_host_means_pool_no_balloon_and_slow_beats) {
  Governor governor(options(true));
  const Decision decision = governor.step(at(0, 14 * kGiB));
  EXPECT_EQ(decision.policy, ReturnPolicy::kPool);
  EXPECT_EQ(decision.pool_bytes_max, 512 * kMiB);
  EXPECT_EQ(decision.balloon_target, 0U);
  EXPECT_EQ(decision.again, seconds(10));
  EXPECT_TRUE(decision.changes.empty());
}

TEST(Governor, without_memory_auto_an_idle_vm_needs_no_beats) {
  Governor governor(options(false));
  EXPECT_EQ(governor.step(at(0, 14 * kGiB)).again, milliseconds(0));
  EXPECT_EQ(governor.step(at(60, 14 * kGiB)).again, milliseconds(0));
}

TEST(Governor, without_memory_auto_psi_switches_the_policy_and_nothing_else) {
  Governor governor(options(false));
  (void)governor.step(at(0, 14 * kGiB));
  Observation pressed = at(1, 2 * kGiB);
  pressed.host.trigger_fired = true;
  const Decision decision = governor.step(pressed);
  EXPECT_EQ(decision.policy, ReturnPolicy::kDiscard);
  EXPECT_EQ(decision.pool_bytes_max, 0U);
  EXPECT_TRUE(decision.purge);
  EXPECT_TRUE(changed(decision, "policy"));
  EXPECT_EQ(decision.balloon_target, 0U);
  EXPECT_EQ(decision.pull_bytes, 0U);
  EXPECT_GT(decision.again, milliseconds(0));  // to find the end of it
}

TEST(Governor, pressure_ends_after_a_while_without_it_and_beats_end_too) {
  Governor governor(options(false));
  Observation pressed = at(0, 14 * kGiB);
  pressed.host.trigger_fired = true;
  EXPECT_EQ(governor.step(pressed).policy, ReturnPolicy::kDiscard);
  Decision decision;
  int second = 1;
  for (; second < 600; ++second) {
    decision = governor.step(at(second, 14 * kGiB));
    if (decision.policy == ReturnPolicy::kPool) break;
  }
  EXPECT_GE(second, 100);
  EXPECT_LE(second, 300);
  EXPECT_EQ(decision.again, milliseconds(0));
}

TEST(Governor, psi_average_alone_is_pressure) {
  Governor governor(options(false));
  Observation pressed = at(0, 14 * kGiB);
  pressed.host.some_avg10 = 20;
  EXPECT_EQ(governor.step(pressed).policy, ReturnPolicy::kDiscard);
}

TEST(Governor, cgroup_near_its_limit_counts_like_a_host_without_memory) {
  Governor governor(options(true));
  Decision decision;
  for (int second = 0; second < 20; ++second) {
    Observation seen = at(second, 14 * kGiB);
    seen.host.limit = 4 * kGiB;
    seen.host.headroom = 250 * kMiB;
    decision = governor.step(seen);
  }
  EXPECT_EQ(decision.policy, ReturnPolicy::kDiscard);
  EXPECT_GT(decision.balloon_target, 0U);
}

TEST(Governor, never_asks_for_memory_in_use_whatever_the_price) {
  Governor governor(options(true));
  Decision decision;
  for (int second = 0; second < 600; ++second) {
    Observation seen = at(second, 100 * kMiB);  // below the host's floor
    seen.balloon_actual = decision.balloon_target;
    const uint64_t allotment = 4 * kGiB - seen.balloon_actual;
    seen.guest = GuestView{.free = allotment - 1200 * kMiB, .available = allotment - 1 * kGiB};
    decision = governor.step(seen);
  }
  EXPECT_GT(decision.balloon_target, 2 * kGiB);
  EXPECT_LE(decision.balloon_target, 3 * kGiB);
}

TEST(Governor, floor_holds_against_a_guest_that_claims_to_need_nothing) {
  GovernorOptions with_floor = options(true);
  with_floor.floor = 3 * kGiB;
  Governor governor(with_floor);
  Decision decision;
  for (int second = 0; second < 600; ++second) {
    Observation seen = at(second, 0);
    seen.balloon_actual = decision.balloon_target;
    seen.guest = GuestView{.free = UINT64_MAX, .available = UINT64_MAX};
    decision = governor.step(seen);
    ASSERT_LE(decision.balloon_target, 1 * kGiB);
  }
  EXPECT_EQ(decision.balloon_target, 1 * kGiB);
}

TEST(Governor, steps_are_limited) {
  Governor governor(options(true));
  uint64_t last = 0;
  for (int second = 0; second < 100; ++second) {
    Observation seen = at(second, 0);
    seen.balloon_actual = last;
    const Decision decision = governor.step(seen);
    ASSERT_LE(decision.balloon_target - last, 4 * kGiB / 4);
    last = decision.balloon_target;
  }
}

TEST(Governor, guest_that_fell_silent_is_asked_for_nothing) {
  Governor governor(options(true));
  (void)governor.step(at(0, 14 * kGiB));
  for (int second = 40; second < 80; ++second) {
    Observation seen = at(second, 500 * kMiB);
    seen.guest.reset();
    EXPECT_EQ(governor.step(seen).balloon_target, 0U);
  }
}

TEST(Governor, guest_without_statistics_keeps_its_memory) {
  Governor governor(options(true));
  for (int second = 0; second < 60; ++second) {
    Observation seen = at(second, 500 * kMiB);
    seen.guest.reset();
    const Decision decision = governor.step(seen);
    EXPECT_EQ(decision.balloon_target, 0U);
    EXPECT_EQ(decision.pull_bytes, 0U);
  }
}

TEST(Governor, pulls_free_memory_that_was_not_returned_and_leaves_a_reserve) {
  Governor governor(options(true));
  Observation seen = at(0, 1500 * kMiB);
  seen.resident = 4 * kGiB;  // all of it, although 2 GiB are free
  Decision decision = governor.step(seen);
  EXPECT_GT(decision.pull_bytes, 1 * kGiB);
  EXPECT_LE(decision.pull_bytes, 2 * kGiB - 128 * kMiB);
  seen.now = seconds(1);
  EXPECT_EQ(governor.step(seen).pull_bytes, 0U);  // not every second
}

// Each sign by which a guest tells that it misses memory raises its need, by itself.
struct Sign {
  const char* name;
  uint64_t GuestView::* figure;
  uint64_t bearable;  // in a second, without missing anything
};
class GovernorSigns : public testing::TestWithParam<Sign> {
 protected:
  // What a guest with this much free is thought to need, when it has said this.
  uint64_t need_at(int second, uint64_t free, uint64_t figure) {
    Observation seen = at(second, 14 * kGiB);
    seen.guest = GuestView{.free = free, .available = free + 1 * kGiB};
    (*seen.guest).*GetParam().figure = figure;
    (void)governor.step(seen);
    return governor.need();
  }
  Governor governor{options(true)};
};
INSTANTIATE_TEST_SUITE_P(All, GovernorSigns,
                         testing::Values(Sign{"major_faults", &GuestView::major_faults, 50},
                                         Sign{"swapped_in", &GuestView::swapped_in, kMiB},
                                         Sign{"alloc_stalls", &GuestView::alloc_stalls, 5},
                                         Sign{"oom_kills", &GuestView::oom_kills, 0}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(GovernorSigns, raise_the_need_of_a_guest_without_free_memory) {
  constexpr uint64_t kFree = 64 * kMiB;
  const uint64_t bearable = GetParam().bearable;
  const uint64_t calm = need_at(0, kFree, 1000);
  EXPECT_EQ(need_at(1, kFree, 1000 + bearable), calm);
  EXPECT_GT(need_at(2, kFree, 1000 + 2 * bearable + 1), calm);
}

TEST_P(GovernorSigns, of_a_guest_with_free_memory_only_kills_count) {
  const bool kills = GetParam().figure == &GuestView::oom_kills;
  const uint64_t calm = need_at(0, 2 * kGiB, 0);
  EXPECT_EQ(need_at(1, 2 * kGiB, kGiB) > calm, kills);
}

TEST(Governor, own_pool_is_not_a_shortage) {
  Governor governor(options(true));
  Observation seen = at(0, 3 * kGiB);
  seen.pool_bytes = 512 * kMiB;
  EXPECT_EQ(governor.step(seen).pool_bytes_max, 512 * kMiB);
  EXPECT_EQ(governor.price(), 0);
}

TEST(Governor, every_change_has_a_reason) {
  Governor governor(options(true));
  for (int second = 0; second < 60; ++second) {
    const uint64_t available = second < 30 ? 14 * kGiB : 1 * kGiB;
    Decision before;
    const Decision decision = governor.step(at(second, available));
    for (const DecisionChange& change : decision.changes) {
      EXPECT_FALSE(change.why.empty());
      EXPECT_NE(change.from, change.to);
    }
    if (second == 30) EXPECT_FALSE(decision.changes.empty());
  }
}

TEST(Governor, absurd_figures_do_no_harm) {
  Governor governor(options(true));
  uint64_t state = 1;
  const auto random = [&] {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return state >> (state % 60);
  };
  for (int i = 0; i < 100'000; ++i) {
    Observation seen;
    seen.now = milliseconds(i * 700);
    seen.host = {.total = random(), .available = random(), .limit = random(), .headroom = random()};
    seen.host.some_avg10 = static_cast<double>(random() % 101);
    seen.guest = GuestView{random(), random(), random(), random(), random(), random()};
    seen.balloon_actual = random();
    seen.resident = random();
    seen.pool_bytes = random();
    const Decision decision = governor.step(seen);
    ASSERT_LE(decision.balloon_target, 4 * kGiB - governor.least_allotment());
    ASSERT_LE(decision.pool_bytes_max, 512 * kMiB);
    ASSERT_LE(decision.pull_bytes, 4 * kGiB);
    ASSERT_GE(governor.price(), 0);
    ASSERT_LE(governor.price(), 1);
  }
}

}  // namespace
}  // namespace lethe
