// The governor against the simulated host of fake_host.h. bench/governor.cc runs the same traces
// with many more seeds.
#include <gtest/gtest.h>

#include "memory/fake_host.h"

namespace lethe {
namespace {

class GovernorTraces : public testing::TestWithParam<size_t> {};

TEST_P(GovernorTraces, no_oscillation_and_nobody_below_a_floor) {
  const NamedTrace& trace = governor_traces()[GetParam()];
  uint64_t moves = 0;
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    const SimulationResult result = trace.run(seed);
    EXPECT_LE(result.reversals_max, 1)
        << trace.name << " seed " << seed << ": " << result.reversals_where;
    EXPECT_EQ(result.floor_violations, 0)
        << trace.name << " seed " << seed << ": " << result.floor_where;
    moves += result.moves;
  }
  // All but the steady trace make it work.
  if (GetParam() != 0) EXPECT_GT(moves, 100U);
}
INSTANTIATE_TEST_SUITE_P(All, GovernorTraces, testing::Range<size_t>(0, governor_traces().size()),
                         [](const auto& info) { return governor_traces()[info.param].name; });

// Two VMs hold cache, a third needs memory that the host does not have free.
TEST(GovernorSimulation, memory_moves_to_the_vm_that_needs_it) {
  FakeHost host(16 * kGiB, 5);
  host.other = 3 * kGiB;
  for (int i = 0; i < 2; ++i)
    host.add({.size = 5 * kGiB, .anonymous = 400 * kMiB, .cache = 4000 * kMiB});
  FakeGuest& needs = host.add({.size = 6 * kGiB, .anonymous = 400 * kMiB, .cache = 100 * kMiB});
  host.at(200, 40, [&](double part) {
    needs.anonymous_wanted = 400 * kMiB + static_cast<uint64_t>(part * 3.5 * kGiB);
  });
  host.check(500, [&] { EXPECT_GE(needs.anonymous(), 3500 * kMiB); });
  host.run(501);
  EXPECT_EQ(host.result().floor_violations, 0) << host.result().floor_where;
}

TEST(GovernorSimulation, memory_comes_back_when_the_host_has_plenty_again) {
  FakeHost host(16 * kGiB, 6);
  host.other = 9 * kGiB;
  FakeGuest& vm = host.add({.size = 5 * kGiB, .anonymous = 400 * kMiB, .cache = 3500 * kMiB});
  host.check(299, [&] { EXPECT_LT(vm.allotment(), 5 * kGiB); });
  host.at(300, 1, [&](double) { host.other = 2 * kGiB; });
  host.check(850, [&] { EXPECT_GE(vm.allotment(), 5 * kGiB - 128 * kMiB); });
  host.run(851);
}

// The same demand, more than there is for all of them: who weighs more gets more.
TEST(GovernorSimulation, weight_sets_the_share_of_a_scarce_host) {
  for (uint32_t seed = 1; seed <= 5; ++seed) {
    FakeHost host(16 * kGiB, seed);
    host.other = 7 * kGiB;
    FakeGuest& light =
        host.add({.size = 6 * kGiB, .weight = 50, .anonymous = 400 * kMiB, .cache = 300 * kMiB});
    FakeGuest& middle =
        host.add({.size = 6 * kGiB, .weight = 100, .anonymous = 400 * kMiB, .cache = 300 * kMiB});
    FakeGuest& heavy =
        host.add({.size = 6 * kGiB, .weight = 400, .anonymous = 400 * kMiB, .cache = 300 * kMiB});
    host.at(100, 60, [&](double part) {
      for (FakeGuest* guest : {&light, &middle, &heavy})
        guest->cache_wanted = 300 * kMiB + static_cast<uint64_t>(part * 5 * kGiB);
    });
    host.run(900);
    EXPECT_GT(heavy.allotment(), middle.allotment() * 9 / 8) << seed;
    EXPECT_GT(middle.allotment(), light.allotment() * 9 / 8) << seed;
    EXPECT_GT(heavy.allotment(), light.allotment() * 3 / 2) << seed;
    EXPECT_GT(light.allotment(), 512 * kMiB) << seed;
  }
}

TEST(GovernorSimulation, vm_in_focus_is_spared) {
  FakeHost host(16 * kGiB, 7);
  host.other = 3 * kGiB;
  FakeGuest& looked_at =
      host.add({.size = 5 * kGiB, .anonymous = 500 * kMiB, .cache = 3000 * kMiB});
  looked_at.focus = true;
  FakeGuest& behind = host.add({.size = 5 * kGiB, .anonymous = 500 * kMiB, .cache = 3000 * kMiB});
  host.at(100, 40,
          [&](double part) { host.other = 3 * kGiB + static_cast<uint64_t>(part * 3 * kGiB); });
  host.run(400);
  EXPECT_EQ(looked_at.balloon_target, 0U);
  EXPECT_GT(behind.balloon_target, 512 * kMiB);
}

TEST(GovernorSimulation, leak_is_bounded_by_the_leaking_vms_size) {
  FakeHost host(16 * kGiB, 8);
  host.other = 6 * kGiB;
  FakeGuest& leaks = host.add({.size = 4 * kGiB, .anonymous = 400 * kMiB, .cache = 300 * kMiB});
  FakeGuest& other = host.add({.size = 4 * kGiB, .anonymous = 600 * kMiB, .cache = 1000 * kMiB});
  host.at(100, 600, [&](double part) {
    leaks.anonymous_wanted = 400 * kMiB + static_cast<uint64_t>(part * 20 * kGiB);
  });
  host.run(1500);
  EXPECT_LE(leaks.resident(), 4 * kGiB);
  EXPECT_GE(other.cached(), 950 * kMiB);  // what it works with was left to it
  EXPECT_EQ(host.result().floor_violations, 0) << host.result().floor_where;
}

}  // namespace
}  // namespace lethe
