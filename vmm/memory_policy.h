// The loop that feeds the governor (memory/governor.h) and does what it decides.
//
// It runs on the main loop: woken by the host's PSI trigger, and by a timer for as long as the
// governor wants to look again: each second under pressure, and with memory.auto each 3 to 10 s. A
// VM without memory.auto on an idle host has no timer, once the loop listens: a beat after start().
//
//   memory.policy = "auto"   policy and pool follow the host's pressure, and the caches are purged
//   memory.auto = true       also pool size, balloon target and pulls, by price and need
//
// With memory.auto a guest that begins to report much freed memory is not left to its own pace
// (Linux: 32 blocks in 2 s, and no fragments at all) where the host wants it: all that it has free
// is pulled at once. Not while the pool takes it and the host has plenty.
//
// A policy that the user set otherwise is left alone; so is the balloon without memory.auto.
//
// Put together in Machine: made after MemoryReturn, started with the vCPUs, destroyed first:
//
//   x_policy = std::make_unique<MemoryPolicyLoop>(loop, options, target, shrinker);
//   x_policy->start();
//
// Threading: the loop's thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/metrics.h"
#include "devices/virtio/balloon/balloon.h"
#include "memory/governor.h"
#include "memory/pressure.h"
#include "memory/shrinker.h"

namespace lethe {

// What the loop acts on: MemoryReturn, or a fake.
class MemoryPolicyTarget {
 public:
  virtual ~MemoryPolicyTarget() = default;
  // The config or the user said "auto".
  [[nodiscard]] virtual bool policy_is_auto() const = 0;
  [[nodiscard]] virtual ReturnPolicy policy_now() const = 0;
  [[nodiscard]] virtual uint64_t pool_max() const = 0;  // as the user wants it; bytes, as all here
  [[nodiscard]] virtual uint64_t pool_bytes() const = 0;  // in the pool now
  [[nodiscard]] virtual uint64_t resident() const = 0;  // of guest memory, about; without the pool
  virtual void apply(ReturnPolicy policy, uint64_t pool_bytes_max) = 0;
  [[nodiscard]] virtual BalloonControl& balloon() = 0;
};

struct MemoryPolicyOptions {
  uint64_t guest_size = 0;
  uint64_t floor = 0;
  uint32_t weight = 100;
  bool automatic = false;                    // memory.auto
  std::string host_root = "";                // in front of /proc (tests)
  std::chrono::milliseconds beat_min{1000};  // steps are no closer (tests)
};

class MemoryPolicyLoop {
 public:
  static constexpr size_t kDecisionsKept = 64;
  static constexpr uint64_t kFollowBytes = 64 * kMiB;  // so much reported makes a pull worth it
  static constexpr int kFollowBeats = 10;              // and no two follow each other closer

  MemoryPolicyLoop(EventLoop& loop, const MemoryPolicyOptions& options, MemoryPolicyTarget& target,
                   Shrinker& shrinker);

  // Harmless if it runs. Nothing happens unless memory.auto is set or the policy is "auto" now: a
  // user who changes that calls again.
  void start();
  // memory.auto, while the VM runs: the governor starts afresh; switched off, what the balloon took
  // is given back.
  void set_automatic(bool automatic);
  [[nodiscard]] bool automatic() const { return x_options.automatic; }
  // An input of the governor: the user looks at this VM's window.
  void set_focus(bool focus);

  struct Line {
    std::chrono::steady_clock::time_point when;
    std::string text;  // what changed, from what to what, and why
  };
  // The last ones, oldest first.
  [[nodiscard]] std::vector<Line> decisions() const { return {x_lines.begin(), x_lines.end()}; }
  void report_metrics(MetricSink& sink) const;
  // Steps so far: what an idle VM must not have.
  [[nodiscard]] uint64_t steps() const { return x_steps; }

 private:
  void watch_trigger();
  void on_timer();
  void watch_reports(bool on);
  void on_reports(uint64_t bytes);
  void on_trigger();
  void step();
  [[nodiscard]] Observation observe();
  [[nodiscard]] std::optional<GuestView> guest_view();
  [[nodiscard]] uint64_t scaled_pool(uint64_t bytes) const;
  void carry_out(const Decision& decision);
  void note(const Decision& decision);
  void keep_line(std::chrono::steady_clock::time_point when, std::string text);

  EventLoop& x_loop;
  MemoryPolicyOptions x_options;
  MemoryPolicyTarget& x_target;
  Shrinker& x_shrinker;
  bool x_started = false;
  std::optional<Pressure> x_pressure;  // a beat later
  std::optional<Governor> x_governor;  // always there: optional so that it can be made anew
  uint64_t x_governed_pool_max;        // what the governor takes for the pool's size
  UniqueFd x_trigger;
  std::unique_ptr<EventLoop::Watch> x_watch;
  std::unique_ptr<EventLoop::Timer> x_timer;
  std::chrono::steady_clock::time_point x_stepped_at;
  bool x_fired = false;
  bool x_focus = false;
  MemoryState x_seen;
  std::chrono::steady_clock::time_point x_guest_when;  // of the statistics used last

  bool x_applied = false;
  uint64_t x_reported = 0;  // since the last pull that followed reports
  std::chrono::steady_clock::time_point x_followed_at;
  // Gone with this: what the balloon's thread has posted, or still posts, does nothing then. The
  // event loop outlives both.
  std::shared_ptr<bool> x_alive = std::make_shared<bool>(true);

  std::deque<Line> x_lines;
  uint64_t x_steps = 0;
  uint64_t x_fires = 0;
  uint64_t x_pulls = 0;
  uint64_t x_changes = 0;
};

}  // namespace lethe
