#include "memory/governor.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "base/assert.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;

// Where the price begins and where it is 1, in host floors. The end lies above the floor: what is
// decided takes a moment to come true.
constexpr double kPriceBegins = 4;
constexpr double kPriceIsFull = 1.5;
constexpr double kPriceFarOff = -1.6;  // below it the slow beat is enough
constexpr double kPriceSeconds = 3;    // time constant of its smoothing

// PSI (percent of the time that somebody waited for memory, over 10 s) adds to the price, but only
// so much that excess is taken: it lags, and stays up for a while after the shortage.
constexpr double kPsiBegins = 5;
constexpr double kPsiIsFull = 40;
constexpr double kPsiPriceMax = 0.5;

// After a high price guests take at its slowly falling memory: all of them then get more at the
// same pace, and nobody gets what another one, slower to ask, will need.
constexpr double kStepPartsMax = 4;        // of the guest's size, the longest step
constexpr double kHighPriceSeconds = 300;  // from 1 to 0
constexpr double kShortPrice = 0.3;

// Pressure: the pool is switched off. Begins and ends at different places, and lasts a while.
constexpr double kPressureBegins = 0.5;
constexpr double kPressurePsiBegins = 10;
constexpr double kPressurePsiEnds = 1;
constexpr milliseconds kPressureLasts{180'000};

// A guest misses memory if it has next to nothing free and, per second, does more of one of these.
constexpr double kMajorFaults = 50;
constexpr double kAllocStalls = 5;
constexpr double kSwappedIn = static_cast<double>(kMiB);

// How far a step goes: a share of the distance a second, within limits.
constexpr double kShare = 1.0 / 24;
constexpr double kShareUrgent = 1.0 / 5;  // giving, with the host near its floor
constexpr double kHighPrice = 0.75;
// A little above the floor, where the price no longer tells: the guest gives without waiting,
// whatever it did before.
constexpr double kUrgentPrice = 1.06;
constexpr uint64_t kStepMin = 16 * kMiB;
// While there is less than plenty, guests are given memory at a pace set by their weights: so their
// parts are about right when the price stops them.
constexpr double kPaceParts = 192;
// Turning round: the price may swing by the play before anybody does, and the wish to must last.
// The second turn after a change of load takes more of both.
struct Turning {
  double play;
  milliseconds lasts;
};
constexpr Turning kFirstTurn{0.15, milliseconds(6'000)};
constexpr Turning kNextTurn{0.5, milliseconds(180'000)};
// The load changed: the price leaves the band in which it had settled.
constexpr double kSettledBand = 0.1;
constexpr double kSettledSeconds = 30;  // it follows slow drift
constexpr milliseconds kSettledAfter{240'000};
// Above its need a guest is given memory only when the price has been this low for so long: others
// may be about to take what they need.
constexpr double kPlentyPrice = 0.1;
constexpr milliseconds kPlentyAfter{60'000};
constexpr milliseconds kSilentAfter{30'000};
constexpr milliseconds kPullEvery{10'000};
constexpr uint64_t kPullMin = 64 * kMiB;
constexpr double kPullPrice = 0.3;

constexpr milliseconds kBeat{1'000};
constexpr milliseconds kWatchfulBeat{3'000};
constexpr milliseconds kSlowBeat{10'000};

// May be below 0 and above 1.
double price_of(uint64_t total, uint64_t available) {
  if (total == 0) return kPriceFarOff;
  const double floor = static_cast<double>(Governor::host_floor(total));
  return (kPriceBegins * floor - static_cast<double>(available)) /
         ((kPriceBegins - kPriceIsFull) * floor);
}

// The part that is taken at a price of `part` of the way, by weight: the part itself at a weight of
// 100; near the end, what is left is in proportion to the weight.
double weighed(double part, double weight) {
  if (part <= 0) return 0;
  return part / (part + (1 - part) * weight / 100);
}

std::string mib(uint64_t bytes) { return fmt::format("{} MiB", bytes / kMiB); }

uint64_t since(uint64_t now, uint64_t before) { return now > before ? now - before : 0; }

}  // namespace

uint64_t Governor::host_floor(uint64_t total) {
  return std::clamp<uint64_t>(total / 20, 16 * kMiB, 2 * kGiB);
}

Governor::Governor(const GovernorOptions& options)
    : x_options(options),
      x_floor(std::min(options.guest_size,
                       std::max({options.floor, options.guest_size / 16, 64 * kMiB}))),
      x_reserve(std::max(options.guest_size / 32, 32 * kMiB)),
      x_need(options.guest_size),
      x_pool_bytes_max(options.pool_max) {
  LETHE_ASSERT(options.weight >= 1);
}

Decision Governor::step(const Observation& seen) {
  const double seconds =
      x_last ? std::clamp(std::chrono::duration<double>(seen.now - *x_last).count(), 0.0, 60.0) : 0;
  update_price(seen, seconds);
  update_settled(seen.now, seconds);
  update_pressure(seen);
  update_need(seen);

  Decision decision;
  decide_policy(seen, decision);
  decision.balloon_target = x_target;
  if (x_options.adjust && x_guest) {
    decide_balloon(seen, seconds, decision);
    decide_pull(seen, decision);
  }
  x_last = seen.now;
  const bool busy = x_pressure || (x_options.adjust && (x_price > 0.01 || x_moving));
  decision.again = busy                ? kBeat
                   : !x_options.adjust ? milliseconds(0)
                   : x_near            ? kWatchfulBeat
                                       : kSlowBeat;
  return decision;
}

void Governor::update_price(const Observation& seen, double seconds) {
  // This VM's own pool is given up first, so it counts as available: else the pool's growing would
  // look like a shortage to the one who lets it grow.
  const HostView& host = seen.host;
  double price = price_of(host.total, host.available + seen.pool_bytes);
  if (host.limit != 0)
    price = std::max(price, price_of(host.limit, host.headroom + seen.pool_bytes));
  const double psi = (host.some_avg10 - kPsiBegins) / (kPsiIsFull - kPsiBegins);
  x_raw_price = std::max(price, std::clamp(psi, 0.0, 1.0) * kPsiPriceMax);
  x_near = price > kPriceFarOff;
  const double part = x_last ? 1 - std::exp(-seconds / kPriceSeconds) : 1;
  x_price += part * (std::min(x_raw_price, 1.0) - x_price);
  if (x_price < 0.001) x_price = 0;
  if (x_raw_price >= kUrgentPrice) x_price = 1;
  x_high_price = std::max(x_price, x_high_price - seconds / kHighPriceSeconds);
  if (x_price > kShortPrice && !x_short) {
    x_short = true;
    x_high_price = 1;
  } else if (plenty(seen.now)) {
    x_short = false;
  }
  if (x_price > kPlentyPrice) x_scarce_at = seen.now;
}

// Notices a change of load by the price. What was learned from the last one is over: every
// direction is open again.
void Governor::update_settled(Milliseconds now, double seconds) {
  x_settled_price += (x_price - x_settled_price) * (1 - std::exp(-seconds / kSettledSeconds));
  if (std::abs(x_price - x_settled_price) <= kSettledBand) return;
  if (now - x_unsettled_at >= kSettledAfter) {
    x_direction = x_price > x_settled_price ? -1 : 1;
    x_turns = 0;
    x_reverse_since.reset();
    if (x_short) x_high_price = 1;
  }
  x_settled_price = x_price;
  x_unsettled_at = now;
}

void Governor::update_pressure(const Observation& seen) {
  const bool begins = seen.host.trigger_fired || seen.host.some_avg10 >= kPressurePsiBegins ||
                      x_price >= kPressureBegins;
  const bool ends = !begins && seen.host.some_avg10 < kPressurePsiEnds && plenty(seen.now);
  if (begins) x_pressure = true;
  if (!ends) x_calm_since = seen.now;
  if (x_pressure && seen.now - x_calm_since >= kPressureLasts) x_pressure = false;
}

bool Governor::distressed(const GuestView& now, const GuestView& before, double seconds) const {
  if (now.oom_kills > before.oom_kills) return true;
  // A guest with free memory that faults is only starting programs.
  if (now.free > x_reserve) return false;
  const auto rate = [&](uint64_t a, uint64_t b) {
    return static_cast<double>(since(a, b)) / seconds;
  };
  return rate(now.major_faults, before.major_faults) > kMajorFaults ||
         rate(now.alloc_stalls, before.alloc_stalls) > kAllocStalls ||
         rate(now.swapped_in, before.swapped_in) > kSwappedIn;
}

void Governor::update_need(const Observation& seen) {
  if (!seen.guest) return;
  const uint64_t size = x_options.guest_size;
  const uint64_t allotment = size - std::min(size, seen.balloon_actual);
  GuestView guest = *seen.guest;
  guest.available = std::min(guest.available, allotment);
  guest.free = std::min(guest.free, allotment);
  x_used = allotment - guest.available;
  if (x_guest && seen.now > x_guest_at) {
    const double seconds = std::chrono::duration<double>(seen.now - x_guest_at).count();
    x_distressed = distressed(guest, *x_guest, seconds);
    const double room = static_cast<double>(size - std::min(size, x_used + x_reserve));
    // Learned only while it has what it was thought to need: what is on its way may do. Unlearned
    // by evidence, not by time, which would take memory away again and again to see whether it is
    // missed: a guest with free memory has all the cache it asked for. (A guest that keeps cache it
    // needs no more holds no other one back: the limit of wanted_allotment() falls until there is
    // enough.)
    const bool has_its_need = allotment + size / 32 >= x_need;
    if (x_distressed)  // at once: what it has is not enough
      x_missed = std::max(x_missed, static_cast<double>(since(allotment, x_used + x_reserve)));
    if (x_distressed && has_its_need)
      x_missed += static_cast<double>(size) / 64 * std::min(seconds, 4.0);
    if (!x_distressed && guest.free > x_reserve)
      x_missed = std::min(x_missed, static_cast<double>(since(guest.available, guest.free)) * 1.25);
    x_missed = std::clamp(x_missed, 0.0, room);
  }
  x_need = std::clamp(x_used + x_reserve + static_cast<uint64_t>(x_missed), x_floor, size);
  x_guest = guest;
  x_guest_at = seen.now;
}

void Governor::decide_policy(const Observation& seen, Decision& decision) {
  const ReturnPolicy policy = x_pressure ? ReturnPolicy::kDiscard : ReturnPolicy::kPool;
  uint64_t pool = x_pressure ? 0 : x_options.pool_max;
  if (x_options.adjust && !x_pressure) {
    // Shrinks with the price, in quarters, and grows back only a quarter lower than it shrank.
    const double quarters = 4 * (1 - x_price / kPressureBegins);
    const uint64_t quarter = x_options.pool_max / 4;
    const auto most = static_cast<uint64_t>(std::clamp(std::ceil(quarters), 0.0, 4.0)) * quarter;
    const auto least = static_cast<uint64_t>(std::clamp(std::floor(quarters), 0.0, 4.0)) * quarter;
    if (x_price > 0) pool = std::clamp(x_pool_bytes_max, std::min(least, most), most);
  }
  decision.policy = policy;
  decision.pool_bytes_max = pool;
  if (policy != x_policy) {
    decision.changes.push_back({"policy", policy_name(x_policy), policy_name(policy), reason()});
    decision.purge = x_pressure;
  }
  if (pool != x_pool_bytes_max)
    decision.changes.push_back({"pool", mib(x_pool_bytes_max), mib(pool), reason()});
  if (x_pressure && seen.host.trigger_fired) decision.purge = true;
  if (decision.purge) decision.changes.push_back({"purge", "", "all caches", reason()});
  x_policy = policy;
  x_pool_bytes_max = pool;
}

// What the guest should have, by the rule at the top of the header.
uint64_t Governor::wanted_allotment(const Observation& seen, double price) const {
  const auto size = static_cast<double>(x_options.guest_size);
  const auto floor = static_cast<double>(x_floor);
  const auto need = static_cast<double>(x_need);
  // The user looks at it: nothing above its need is taken, and its need weighs more.
  const double weight = x_options.weight * (seen.focus ? 4.0 : 1.0);
  const double excess_part = seen.focus ? 0 : weighed(std::min(1.0, 2 * price), weight);
  const double need_part = weighed(std::max(0.0, 2 * price - 1), weight);
  // A limit for all, by size and weight, and not a part of each need: so a guest that needs little
  // keeps it, and those share the shortage who cause it.
  const double limit = size - need_part * (size - floor);
  const double wanted = std::min(size - excess_part * (size - need), limit);
  // Whatever the price: memory in use is not taken away, the guest would kill for it. (It may be
  // denied, if the guest wants it and does not have it yet.)
  const uint64_t allotment = x_options.guest_size - x_target;
  const auto in_use = static_cast<double>(std::min(allotment, x_used + x_reserve / 2));
  return static_cast<uint64_t>(std::clamp(std::max(wanted, in_use), floor, size));
}

bool Governor::plenty(Milliseconds now) const {
  return now - x_scarce_at >= kPlentyAfter && x_high_price <= kPlentyPrice;
}

// From what the guest has to what it should have. Who gave last takes only what it could keep if
// the price rose a little, who took last gives only what it had to if the price fell: so the host's
// figure may swing that much without anybody turning round.
double Governor::distance_to_go(const Observation& seen) const {
  const auto allotment = static_cast<double>(x_options.guest_size - x_target);
  const auto at = [&](double price) {
    const double clamped = std::clamp(price, 0.0, 1.0);
    return static_cast<double>(wanted_allotment(seen, clamped)) - allotment;
  };
  const double play = (x_turns == 0 ? kFirstTurn : kNextTurn).play;
  double distance = at(x_price);
  if (distance > 0) {
    if (plenty(seen.now)) return std::max(0.0, at(std::max(x_price, x_high_price)));
    distance = at(std::max(x_price + (x_direction < 0 ? play : 0), x_high_price));
    return std::max(0.0, std::min(distance, static_cast<double>(x_need) - allotment));
  }
  if (x_direction > 0) distance = std::min(0.0, at(x_price - play));
  return distance;
}

// Whether to go `distance` bytes (above 0: to the guest). Turning round takes a longer distance,
// for a while: noise and the answer to our own last move must not look like a change of load.
bool Governor::may_move(double distance, Milliseconds now) {
  const auto size = static_cast<double>(x_options.guest_size);
  const int direction = distance > 0 ? 1 : -1;
  const double band = std::max(static_cast<double>(kStepMin), size / 64);
  if (x_direction == 0 || direction == x_direction) {
    x_reverse_since.reset();
    return std::abs(distance) >= band;
  }
  const bool small = direction > 0 && (plenty(now) || x_distressed);
  const double turn = small ? band : std::max(static_cast<double>(64 * kMiB), size / 12);
  if (std::abs(distance) < turn) {
    x_reverse_since.reset();
    return false;
  }
  if (!x_reverse_since) x_reverse_since = now;
  const bool urgent = direction < 0 && x_raw_price >= kUrgentPrice;
  const milliseconds lasts = (x_turns == 0 ? kFirstTurn : kNextTurn).lasts;
  if (!urgent && now - *x_reverse_since < lasts) return false;
  ++x_turns;
  return true;
}

void Governor::decide_balloon(const Observation& seen, double seconds, Decision& decision) {
  const double distance = distance_to_go(seen);
  // A guest that fell silent is asked for nothing: what it needs now is not known.
  const bool silent = seen.now - x_guest_at >= kSilentAfter;
  x_moving = distance != 0 && !(silent && distance < 0) && may_move(distance, seen.now);
  if (!x_moving) return;
  const auto size = static_cast<double>(x_options.guest_size);
  const double least = 4 * kMiB;
  const double share = distance < 0 && x_price >= kHighPrice ? kShareUrgent : kShare;
  double step = std::abs(distance) * std::min(1.0, share * std::min(seconds, 4.0));
  if (distance > 0 && x_price > kPlentyPrice) {
    const double weight = std::clamp(x_options.weight / 100.0, 0.1, 4.0);
    step = std::min(step, size / kPaceParts * weight * std::min(seconds, 4.0));
  }
  // What it never touched costs the guest nothing and helps nobody: it does not count as a step.
  const uint64_t untouched = since(x_options.guest_size - x_target, seen.resident);
  if (distance < 0) step += static_cast<double>(std::min(untouched, x_options.guest_size / 8));
  step = std::min(std::abs(distance), std::max(step, least));
  step = std::min(step, size / kStepPartsMax);
  const auto bytes = static_cast<uint64_t>(step) / kMiB * kMiB;
  if (bytes == 0) return;
  const uint64_t target = distance > 0 ? x_target - bytes : x_target + bytes;
  x_direction = distance > 0 ? 1 : -1;
  x_unsettled_at = seen.now;
  x_reverse_since.reset();
  decision.changes.push_back({"balloon", mib(x_target), mib(target), reason()});
  x_target = decision.balloon_target = target;
}

// Free memory that the guest has not given back by itself yet.
void Governor::decide_pull(const Observation& seen, Decision& decision) {
  if (!x_pressure && x_price < kPullPrice) return;
  if (x_pulled_at && seen.now - *x_pulled_at < kPullEvery) return;
  const uint64_t size = x_options.guest_size;
  const uint64_t allotment = size - std::min(size, seen.balloon_actual);
  const uint64_t busy = allotment - x_guest->free;
  const uint64_t held = seen.resident > busy ? seen.resident - busy : 0;  // free, and not returned
  const uint64_t bytes = std::min(held, x_guest->free);
  if (bytes < x_reserve + kPullMin) return;
  decision.pull_bytes = bytes - x_reserve;
  x_pulled_at = seen.now;
  decision.changes.push_back({"pull", "", mib(decision.pull_bytes), reason()});
}

std::string Governor::reason() const {
  std::string text = fmt::format("price {:.2f}, need {}", x_price, mib(x_need));
  if (x_pressure) text += ", host under pressure";
  if (x_distressed) text += ", guest misses memory";
  return text;
}

}  // namespace lethe
