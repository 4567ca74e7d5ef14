// A simulated host with VMs, to try the governor on (governor_sim_test.cc, bench/governor.cc).
//
// The model, a tick a second:
// - A guest has a kernel (3 % of its size and 40 MiB), anonymous memory and page cache. Loads set
// how
//   much of each it wants. It gets them at 300 and 200 MiB/s, anonymous memory first, out of its
//   allotment (its size without the balloon). What anonymous memory it does not get are allocation
//   stalls. Cache that it misses for lack of room makes major faults, 2000 a second if all is
//   missing; filling its cache with room to spare makes some too.
// - The balloon moves 256 MiB/s towards its target, inflating only over what is free or cache.
// - Memory that the guest frees stays with it until it is reported (a quarter of it each second) or
//   pulled (at once), then goes to the scrub pool while that has room, else to the host. What it
//   needs anew comes out of the pool first.
// - What the host has available is its total, less other programs, less guests with their pools.
//   It stalls programs when half of its floor is gone: PSI, averaged over 10 s; the trigger fires
//   at 15 %. Short stalls of 1 to 8 % also come out of nothing now and then.
// - Guests' figures are a second old, and all are noisy: a quarter percent of the host's total,
//   half a percent of the guest's size.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "memory/governor.h"

namespace lethe {

struct FakeGuestOptions {
  uint64_t size = 0;
  uint64_t floor = 0;
  uint32_t weight = 100;
  uint64_t anonymous = 0;  // wanted at the start, and there already
  uint64_t cache = 0;
};

class FakeGuest {
 public:
  explicit FakeGuest(const FakeGuestOptions& options);
  void tick();
  void pull(uint64_t bytes);
  [[nodiscard]] GuestView view() const;
  [[nodiscard]] uint64_t size() const { return x_options.size; }
  [[nodiscard]] uint64_t allotment() const { return x_options.size - balloon; }
  [[nodiscard]] uint64_t resident() const { return in_use() + x_unreported; }
  [[nodiscard]] uint64_t cached() const { return x_cache; }
  [[nodiscard]] uint64_t anonymous() const { return x_anonymous; }
  [[nodiscard]] uint64_t pool() const { return x_pool; }
  [[nodiscard]] const FakeGuestOptions& options() const { return x_options; }
  [[nodiscard]] uint64_t kernel() const;

  // What it wants; set by the trace.
  uint64_t anonymous_wanted = 0;
  uint64_t cache_wanted = 0;
  bool focus = false;
  // Set by the governor.
  uint64_t balloon_target = 0;
  uint64_t pool_max = 0;
  uint64_t balloon = 0;  // now

 private:
  [[nodiscard]] uint64_t in_use() const { return kernel() + x_anonymous + x_cache; }

  const FakeGuestOptions x_options;
  uint64_t x_anonymous = 0;
  uint64_t x_cache = 0;
  uint64_t x_unreported = 0;
  uint64_t x_pool = 0;
  uint64_t x_faults = 0;
  uint64_t x_stalls = 0;
};

// What became of a trace.
struct SimulationResult {
  int reversals_max = 0;        // of a VM's balloon or policy, between two changes of load
  std::string reversals_where;  // of the worst
  int floor_violations = 0;     // seconds with the host or a VM below its floor
  std::string floor_where;      // of the first
  uint64_t moves = 0;           // balloon steps in all
};

class FakeHost {
 public:
  FakeHost(uint64_t total, uint32_t seed);

  // Before run(). The guest is owned by the host.
  FakeGuest& add(const FakeGuestOptions& options);
  // At `second` the load changes. `ramp_seconds`: for how long it goes on changing; `change` is
  // called for each of these seconds with the part (0 to 1) that has come true.
  void at(int second, int ramp_seconds, std::function<void(double part)> change);
  // Calls `look` at that second, after the tick.
  void check(int second, std::function<void()> look);
  void run(int seconds);

  uint64_t other = 0;  // other programs' memory
  [[nodiscard]] uint64_t available() const;
  [[nodiscard]] uint64_t total() const { return x_total; }
  [[nodiscard]] const Governor& governor(size_t vm) const { return *x_vms[vm].governor; }
  [[nodiscard]] const SimulationResult& result() const { return x_result; }
  std::function<void(int second)> trace;  // for the curious: called after each tick

 private:
  struct Vm {
    std::unique_ptr<FakeGuest> guest;
    std::unique_ptr<Governor> governor;
    GuestView told;  // a second ago
    int64_t next_step = 0;
    int direction = 0;
    int reversals = 0;
    int policy_changes = 0;
    ReturnPolicy policy = ReturnPolicy::kPool;
  };
  struct Event {
    int begin, ramp;
    std::function<void(double)> change;
  };
  struct Look {
    int second;
    std::function<void()> look;
  };

  void tick(int second);
  void step(Vm& vm, int second, bool fired);
  void count_moves(Vm& vm, int second, const Decision& decision);
  void check_floors(int second);
  [[nodiscard]] uint64_t noisy(uint64_t bytes, uint64_t scale);

  const uint64_t x_total;
  std::mt19937 x_random;
  std::vector<Vm> x_vms;
  std::vector<Event> x_events;
  std::vector<Look> x_looks;
  double x_avg10 = 0;
  SimulationResult x_result;
};

// The traces, with sizes and times that depend on the seed.
struct NamedTrace {
  const char* name;
  SimulationResult (*run)(uint32_t seed);
};
[[nodiscard]] const std::vector<NamedTrace>& governor_traces();

}  // namespace lethe
