// The governor: decides how a VM's memory is kept or given back. docs/memory.md tells the rule in
// words and pictures.
//
// A step takes an Observation and gives a Decision. It reads no clock and no file, and does nothing
// itself: vmm/memory_policy.h feeds it and does what it decides. Any number of VMs on a host settle
// without a daemon, because each runs this same rule on the same host figures:
//
//   price    0 while the host has plenty, 1 when what it has left comes near its floor
//   need     what the guest can't spare: used memory, a reserve, and what it was seen to miss
//   0..1/2   of the price takes what is above the need, in equal shares of it
//   1/2..1   cuts needs too, towards the VM's floor, so that VMs that want more than there is get
//            parts of it by weight
//
// The price rises until the sum fits; nobody needs to know the others.
//
// Threading: none of its own; one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "memory/return_pipeline.h"

namespace lethe {

struct GovernorOptions {
  uint64_t guest_size = 0;  // bytes, as all sizes here
  uint64_t pool_max = 0;    // the scrub pool's size on an idle host
  uint64_t floor = 0;       // least that the guest is left; least_allotment() raises it
  uint32_t weight = 100;    // 1 to 10000
  bool adjust = false;      // memory.auto: false switches the policy only
};

struct HostView {
  uint64_t total = 0;  // 0: unknown
  uint64_t available = 0;
  uint64_t limit = 0;     // of the memory cgroup; 0: none
  uint64_t headroom = 0;  // below that limit
  double some_avg10 = 0;  // percent, PSI of memory; 0 where there is no PSI
  double full_avg10 = 0;
  bool trigger_fired = false;  // the PSI trigger, since the last step
};

// What the guest says. A guest may lie: figures are clamped, and what it can win is its own size.
struct GuestView {
  uint64_t free = 0;
  uint64_t available = 0;
  // Since its boot.
  uint64_t major_faults = 0;
  uint64_t swapped_in = 0;  // bytes
  uint64_t alloc_stalls = 0;
  uint64_t oom_kills = 0;
};

struct Observation {
  std::chrono::milliseconds now{0};  // since any fixed moment; does not go back
  HostView host;
  std::optional<GuestView> guest;  // absent: nothing new, or no statistics at all
  uint64_t balloon_actual = 0;
  uint64_t resident = 0;    // of guest memory, without the pool
  uint64_t pool_bytes = 0;  // in the pool now
  bool focus = false;       // the user looks at this VM
};

struct DecisionChange {
  std::string what;  // "policy", "pool", "balloon", "pull", "purge"
  std::string from, to;
  std::string why;
};

struct Decision {
  ReturnPolicy policy = ReturnPolicy::kPool;
  uint64_t pool_bytes_max = 0;
  uint64_t balloon_target = 0;
  uint64_t pull_bytes = 0;              // to be pulled out of the guest now; 0: none
  bool purge = false;                   // empty the caches (Shrinker)
  std::chrono::milliseconds again{0};   // step again after this; 0: only when PSI says so
  std::vector<DecisionChange> changes;  // what differs from the last decision, and why
};

class Governor {
 public:
  explicit Governor(const GovernorOptions& options);

  [[nodiscard]] Decision step(const Observation& seen);

  // What the host must be left, of `total` bytes: a twentieth, 16 MiB to 2 GiB.
  [[nodiscard]] static uint64_t host_floor(uint64_t total);
  // What the guest is left at the least: its floor, but a sixteenth of its size and 64 MiB if that
  // is more (a kernel's own tables grow with its size), and never above its size.
  [[nodiscard]] uint64_t least_allotment() const { return x_floor; }
  // For `lethe top`: see above.
  [[nodiscard]] double price() const { return x_price; }
  [[nodiscard]] uint64_t need() const { return x_need; }
  [[nodiscard]] bool under_pressure() const { return x_pressure; }

 private:
  using Milliseconds = std::chrono::milliseconds;
  void update_price(const Observation& seen, double seconds);
  void update_settled(Milliseconds now, double seconds);
  void update_pressure(const Observation& seen);
  void update_need(const Observation& seen);
  [[nodiscard]] bool distressed(const GuestView& now, const GuestView& before,
                                double seconds) const;
  [[nodiscard]] uint64_t wanted_allotment(const Observation& seen, double price) const;
  [[nodiscard]] double distance_to_go(const Observation& seen) const;
  void decide_policy(const Observation& seen, Decision& decision);
  void decide_balloon(const Observation& seen, double seconds, Decision& decision);
  void decide_pull(const Observation& seen, Decision& decision);
  [[nodiscard]] bool may_move(double distance, Milliseconds now);
  [[nodiscard]] bool plenty(Milliseconds now) const;
  [[nodiscard]] std::string reason() const;

  const GovernorOptions x_options;
  const uint64_t x_floor;
  const uint64_t x_reserve;  // that a guest is left above what it uses
  std::optional<Milliseconds> x_last;

  double x_raw_price = 0;   // may be above 1
  bool x_near = false;      // the price could rise soon
  double x_price = 0;       // smoothed
  double x_high_price = 0;  // the highest, slowly forgotten
  bool x_short = false;
  bool x_pressure = false;
  Milliseconds x_calm_since{0};
  Milliseconds x_scarce_at{0};  // when the host last had less than plenty

  std::optional<GuestView> x_guest;  // the last one
  Milliseconds x_guest_at{0};
  uint64_t x_used = 0;
  uint64_t x_need = 0;
  double x_missed = 0;  // bytes beyond used memory and reserve that the guest was seen to miss
  bool x_distressed = false;

  ReturnPolicy x_policy = ReturnPolicy::kPool;
  uint64_t x_pool_bytes_max;
  uint64_t x_target = 0;  // of the balloon
  int x_direction = 0;    // of its last move: 1 the guest got memory, -1 it gave, 0 none yet
  std::optional<Milliseconds> x_reverse_since;
  int x_turns = 0;  // since the last change of load
  double x_settled_price = 0;
  Milliseconds x_unsettled_at{0};  // when it moved, or the price did
  std::optional<Milliseconds> x_pulled_at;
  bool x_moving = false;
};

}  // namespace lethe
