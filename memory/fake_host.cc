#include "memory/fake_host.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace lethe {
namespace {

uint64_t towards(uint64_t from, uint64_t to, uint64_t step) {
  return to > from ? from + std::min(step, to - from) : from - std::min(step, from - to);
}
uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

}  // namespace

FakeGuest::FakeGuest(const FakeGuestOptions& options)
    : anonymous_wanted(options.anonymous),
      cache_wanted(options.cache),
      x_options(options),
      x_anonymous(options.anonymous),
      x_cache(options.cache) {}

uint64_t FakeGuest::kernel() const { return x_options.size * 3 / 100 + 40 * kMiB; }

void FakeGuest::tick() {
  const uint64_t before = in_use();
  const uint64_t must_keep = kernel() + x_anonymous + 16 * kMiB;
  balloon = std::min(towards(balloon, balloon_target, 256 * kMiB),
                     std::max(balloon_target, less(x_options.size, must_keep)));
  balloon = std::min(balloon, less(x_options.size, must_keep));

  const uint64_t room = less(allotment(), kernel() + 16 * kMiB);
  x_anonymous = towards(x_anonymous, anonymous_wanted, 300 * kMiB);
  if (x_anonymous > room) {
    x_anonymous = room;
    x_stalls += 50;
  }
  const uint64_t cache_room = room - x_anonymous;
  const uint64_t cache_can = std::min(cache_wanted, cache_room);
  if (x_cache < cache_can) x_faults += 80;
  x_cache = x_cache > cache_can ? cache_can : towards(x_cache, cache_can, 200 * kMiB);
  if (cache_wanted > cache_room && cache_wanted > 0)
    x_faults += 2000 * (cache_wanted - cache_room) / cache_wanted;

  // Memory that is used no more lies free until it is reported; what is used anew is that first.
  const uint64_t after = in_use();
  if (after < before) {
    x_unreported += before - after;
  } else {
    const uint64_t grown = after - before;
    const uint64_t reused = std::min(grown, x_unreported);
    x_unreported -= reused;
    x_pool -= std::min(x_pool, grown - reused);
  }
  x_unreported = std::min(x_unreported, less(allotment(), after));
  const uint64_t reported = std::min(x_unreported, x_unreported / 4 + 4 * kMiB);
  x_unreported -= reported;
  x_pool = std::min(x_pool + reported, pool_max);
}

void FakeGuest::pull(uint64_t bytes) {
  bytes = std::min(bytes, x_unreported);
  x_unreported -= bytes;
  x_pool = std::min(x_pool + bytes, pool_max);
}

GuestView FakeGuest::view() const {
  GuestView view;
  view.free = less(allotment(), in_use());
  view.available = view.free + x_cache * 9 / 10;
  view.major_faults = x_faults;
  view.alloc_stalls = x_stalls;
  return view;
}

FakeHost::FakeHost(uint64_t total, uint32_t seed) : x_total(total), x_random(seed) {}

FakeGuest& FakeHost::add(const FakeGuestOptions& options) {
  Vm vm;
  vm.guest = std::make_unique<FakeGuest>(options);
  GovernorOptions governed;
  governed.guest_size = options.size;
  governed.pool_max = std::min(options.size / 4, 512 * kMiB);
  governed.floor = options.floor;
  governed.weight = options.weight;
  governed.adjust = true;
  vm.governor = std::make_unique<Governor>(governed);
  vm.guest->pool_max = governed.pool_max;
  vm.told = vm.guest->view();
  vm.next_step = static_cast<int64_t>(x_random() % 10);
  x_vms.push_back(std::move(vm));
  return *x_vms.back().guest;
}

void FakeHost::at(int second, int ramp_seconds, std::function<void(double)> change) {
  x_events.push_back({second, std::max(ramp_seconds, 1), std::move(change)});
}

void FakeHost::check(int second, std::function<void()> look) {
  x_looks.push_back({second, std::move(look)});
}

uint64_t FakeHost::available() const {
  uint64_t used = other;
  for (const Vm& vm : x_vms) used += vm.guest->resident() + vm.guest->pool();
  return less(x_total, used);
}

uint64_t FakeHost::noisy(uint64_t bytes, uint64_t scale) {
  std::normal_distribution<double> noise(0, static_cast<double>(scale));
  return static_cast<uint64_t>(std::max(0.0, static_cast<double>(bytes) + noise(x_random)));
}

void FakeHost::run(int seconds) {
  for (int second = 0; second < seconds; ++second) {
    for (const Event& event : x_events) {
      if (second < event.begin || second >= event.begin + event.ramp) continue;
      event.change(static_cast<double>(second - event.begin + 1) / event.ramp);
      if (second != event.begin) continue;
      for (Vm& vm : x_vms) vm.reversals = vm.policy_changes = vm.direction = 0;
    }
    tick(second);
    for (const Look& look : x_looks)
      if (look.second == second) look.look();
    if (trace) trace(second);
  }
}

void FakeHost::tick(int second) {
  for (Vm& vm : x_vms) vm.guest->tick();
  const auto floor = static_cast<double>(Governor::host_floor(x_total));
  const auto left = static_cast<double>(available());
  double stall = std::clamp((floor / 2 - left) / (floor / 2), 0.0, 1.0) * 60;
  if (x_random() % 40 == 0) stall += 1 + static_cast<double>(x_random() % 8);
  x_avg10 += (stall - x_avg10) * (1 - std::exp(-0.1));
  for (Vm& vm : x_vms)
    if (stall > 15 || second >= vm.next_step) step(vm, second, stall > 15);
  check_floors(second);
}

void FakeHost::step(Vm& vm, int second, bool fired) {
  FakeGuest& guest = *vm.guest;
  Observation seen;
  seen.now = std::chrono::seconds(second);
  seen.host.total = x_total;
  seen.host.available = noisy(available(), x_total / 400);
  seen.host.some_avg10 = x_avg10;
  seen.host.trigger_fired = fired;
  GuestView told = vm.told;
  told.free = noisy(told.free, guest.size() / 200);
  told.available = noisy(told.available, guest.size() / 200);
  seen.guest = told;
  seen.balloon_actual = guest.balloon;
  seen.resident = guest.resident();
  seen.pool_bytes = guest.pool();
  seen.focus = guest.focus;
  const Decision decision = vm.governor->step(seen);
  count_moves(vm, second, decision);
  guest.balloon_target = decision.balloon_target;
  guest.pool_max = decision.pool_bytes_max;
  if (decision.pull_bytes > 0) guest.pull(decision.pull_bytes);
  vm.told = guest.view();
  vm.next_step = second + std::max<int64_t>(1, decision.again.count() / 1000);
}

void FakeHost::count_moves(Vm& vm, int second, const Decision& decision) {
  const uint64_t before = vm.guest->balloon_target;
  if (decision.policy != vm.policy) ++vm.policy_changes;
  vm.policy = decision.policy;
  if (decision.balloon_target != before) {
    ++x_result.moves;
    const int direction = decision.balloon_target > before ? -1 : 1;
    if (vm.direction != 0 && direction != vm.direction) ++vm.reversals;
    vm.direction = direction;
  }
  const int worst = std::max(vm.reversals, vm.policy_changes - 1);
  if (worst <= x_result.reversals_max) return;
  x_result.reversals_max = worst;
  x_result.reversals_where = fmt::format(
      "second {}, guest of {} MiB, weight {}: {} of the balloon, {} of the policy", second,
      vm.guest->size() / kMiB, vm.guest->options().weight, vm.reversals, vm.policy_changes);
}

void FakeHost::check_floors(int second) {
  const auto violated = [&](std::string what) {
    if (x_result.floor_violations++ == 0)
      x_result.floor_where = fmt::format("second {}: {}", second, what);
  };
  if (available() < Governor::host_floor(x_total))
    violated(fmt::format("the host has {} of {} MiB", available() / kMiB, x_total / kMiB));
  for (const Vm& vm : x_vms) {
    const uint64_t floor = std::min(vm.guest->size(), vm.guest->options().floor);
    if (vm.guest->allotment() < floor || vm.guest->size() - vm.guest->balloon_target < floor)
      violated(fmt::format("a guest has {} MiB", vm.guest->allotment() / kMiB));
  }
}

}  // namespace lethe
