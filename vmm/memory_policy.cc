#include "vmm/memory_policy.h"

#include <linux/virtio_balloon.h>
#include <poll.h>

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

GovernorOptions governor_options(const MemoryPolicyOptions& options, uint64_t pool_max) {
  GovernorOptions governed;
  governed.guest_size = options.guest_size;
  governed.pool_max = pool_max;
  governed.floor = options.floor;
  governed.weight = options.weight;
  governed.adjust = options.automatic;
  return governed;
}

}  // namespace

MemoryPolicyLoop::MemoryPolicyLoop(EventLoop& loop, const MemoryPolicyOptions& options,
                                   MemoryPolicyTarget& target, Shrinker& shrinker)
    : x_loop(loop),
      x_options(options),
      x_target(target),
      x_shrinker(shrinker),
      x_governor(governor_options(options, target.pool_max())),
      x_governed_pool_max(target.pool_max()),
      x_timer(loop.make_timer([this] { on_timer(); })) {}

void MemoryPolicyLoop::start() {
  if (x_started || !(x_options.automatic || x_target.policy_is_auto())) return;
  x_started = true;
  watch_reports(x_options.automatic);
  x_timer->start(x_options.beat_min);
}

// The first time it only begins to listen. Not before: giving a trigger back costs 8 ms and more
// (the kernel waits for its readers), which a VM that lives for a moment must not pay.
void MemoryPolicyLoop::on_timer() {
  if (!x_pressure) {
    x_pressure.emplace(x_options.host_root);
    watch_trigger();
    if (!x_options.automatic) return;
  }
  step();
}

void MemoryPolicyLoop::watch_reports(bool on) {
  if (!on) return x_target.balloon().on_reports(nullptr);
  x_target.balloon().on_reports(
      [this, &loop = x_loop, alive = std::weak_ptr(x_alive)](uint64_t bytes) {
        loop.post([this, alive, bytes] {
          if (!alive.expired()) on_reports(bytes);
        });
      });
}

void MemoryPolicyLoop::on_reports(uint64_t bytes) {
  x_reported += bytes;
  const auto now = steady_clock::now();
  const bool wanted = x_target.policy_now() != ReturnPolicy::kPool || x_governor->price() > 0;
  if (!x_options.automatic || !wanted || x_reported < kFollowBytes ||
      now - x_followed_at < kFollowBeats * x_options.beat_min)
    return;
  x_followed_at = now;
  ++x_pulls;
  keep_line(now, fmt::format("pull all: the guest began to report what it freed, {} MiB so far",
                             x_reported / kMiB));
  x_reported = 0;
  x_target.balloon().pull(UINT64_MAX, [](uint64_t) {}, [](const PullResult&) {});
}

void MemoryPolicyLoop::set_automatic(bool automatic) {
  if (std::exchange(x_options.automatic, automatic) == automatic) return;
  x_governed_pool_max = x_target.pool_max();
  x_governor.emplace(governor_options(x_options, x_governed_pool_max));
  x_guest_when = {};
  watch_reports(automatic);
  if (!automatic) {
    if (x_pressure) x_timer->cancel();
    return x_target.balloon().set_target(0);
  }
  x_started = true;
  x_timer->start(x_options.beat_min);
}

void MemoryPolicyLoop::set_focus(bool focus) {
  if (std::exchange(x_focus, focus) == focus || !x_options.automatic) return;
  x_timer->start(x_options.beat_min);
}

void MemoryPolicyLoop::watch_trigger() {
  auto trigger = x_pressure->open_trigger();
  if (trigger) {
    auto watch = x_loop.watch_priority(trigger->get(), [this] { on_trigger(); });
    if (watch) {
      x_trigger = std::move(*trigger);
      x_watch = std::move(*watch);
      return;
    }
    trigger = Unexpected(std::move(watch).error());
  }
  // With memory.auto the beats still look at what is available.
  log_info(LogModule::kMemory, "memory pressure is not announced: {}", trigger.error().text);
}

void MemoryPolicyLoop::on_trigger() {
  pollfd ready{.fd = x_trigger.get(), .events = POLLPRI, .revents = 0};
  if (::poll(&ready, 1, 0) > 0 && (ready.revents & POLLERR) != 0) {
    log_info(LogModule::kMemory, "{}: its group is gone; no more triggers", x_pressure->psi_file());
    x_watch.reset();
    x_trigger.reset();
    return;
  }
  ++x_fires;
  x_fired = true;
  const auto since = steady_clock::now() - x_stepped_at;
  if (since >= x_options.beat_min)
    step();
  else
    x_timer->start(x_options.beat_min - since);
}

void MemoryPolicyLoop::step() {
  ++x_steps;
  x_stepped_at = steady_clock::now();
  const Decision decision = x_governor->step(observe());
  carry_out(decision);
  note(decision);
  // The answer is for the next step: nobody waits for a guest.
  if (x_options.automatic) x_target.balloon().request_statistics([](const BalloonStatistics&) {});
  if (decision.again > milliseconds(0))
    x_timer->start(x_options.beat_min * decision.again.count() / 1000);
}

Observation MemoryPolicyLoop::observe() {
  x_seen = x_pressure->read();
  Observation seen;
  seen.now = std::chrono::duration_cast<milliseconds>(x_stepped_at.time_since_epoch());
  seen.host = {.total = x_seen.host_total,
               .available = x_seen.host_available,
               .limit = x_seen.limit,
               .headroom = x_seen.headroom,
               .some_avg10 = x_seen.averages.some_avg10,
               .full_avg10 = x_seen.averages.full_avg10,
               .trigger_fired = std::exchange(x_fired, false)};
  if (x_options.automatic) seen.guest = guest_view();
  seen.balloon_actual = x_target.balloon().actual();
  seen.resident = x_target.resident();
  seen.pool_bytes = x_target.pool_bytes();
  seen.focus = x_focus;
  return seen;
}

std::optional<GuestView> MemoryPolicyLoop::guest_view() {
  const BalloonStatistics statistics = x_target.balloon().statistics();
  if (statistics.when == x_guest_when) return std::nullopt;
  x_guest_when = statistics.when;
  const auto tag = [&](uint16_t number) -> std::optional<uint64_t> {
    const auto found = statistics.tags.find(number);
    if (found == statistics.tags.end()) return std::nullopt;
    return found->second;
  };
  const auto free = tag(VIRTIO_BALLOON_S_MEMFREE);
  if (!free) return std::nullopt;
  GuestView view;
  view.free = *free;
  view.available = std::max(*free, tag(VIRTIO_BALLOON_S_AVAIL).value_or(*free));
  view.major_faults = tag(VIRTIO_BALLOON_S_MAJFLT).value_or(0);
  view.swapped_in = tag(VIRTIO_BALLOON_S_SWAP_IN).value_or(0);
  view.alloc_stalls = tag(kBalloonStatAllocStall).value_or(0);
  view.oom_kills = tag(kBalloonStatOomKill).value_or(0);
  return view;
}

// The user may have changed the pool's size since the governor was told: its word is a part of it.
uint64_t MemoryPolicyLoop::scaled_pool(uint64_t bytes) const {
  const uint64_t most = x_target.pool_max();
  if (bytes >= x_governed_pool_max) return most;
  const double part = static_cast<double>(bytes) / static_cast<double>(x_governed_pool_max);
  return static_cast<uint64_t>(part * static_cast<double>(most)) / kChunkBytes * kChunkBytes;
}

void MemoryPolicyLoop::carry_out(const Decision& decision) {
  if (x_target.policy_is_auto()) {
    // Until the governor first wants something else, what MemoryReturn began with stays. After that
    // its word is repeated each time, since the user may have said something meanwhile.
    const uint64_t pool = scaled_pool(decision.pool_bytes_max);
    x_applied |= decision.policy != ReturnPolicy::kPool || pool != x_target.pool_max();
    if (x_applied) x_target.apply(decision.policy, pool);
  }
  if (decision.purge) (void)x_shrinker.purge(UINT64_MAX);
  if (!x_options.automatic) return;
  BalloonControl& balloon = x_target.balloon();
  if (balloon.target() != decision.balloon_target) balloon.set_target(decision.balloon_target);
  if (decision.pull_bytes > 0) {
    ++x_pulls;
    balloon.pull(decision.pull_bytes, [](uint64_t) {}, [](const PullResult&) {});
  }
}

void MemoryPolicyLoop::note(const Decision& decision) {
  for (const DecisionChange& change : decision.changes) {
    const bool policy = change.what == "policy" || change.what == "pool";
    if (policy && !x_target.policy_is_auto()) continue;  // the user's word holds
    ++x_changes;
    std::string text = change.what;
    if (!change.from.empty()) text += " " + change.from + " ->";
    text += " " + change.to + ": " + change.why;
    keep_line(x_stepped_at, std::move(text));
  }
}

void MemoryPolicyLoop::keep_line(steady_clock::time_point when, std::string text) {
  log_info(LogModule::kMemory, "governor: {}", text);
  x_lines.push_back({when, std::move(text)});
  if (x_lines.size() > kDecisionsKept) x_lines.pop_front();
}

void MemoryPolicyLoop::report_metrics(MetricSink& sink) const {
  sink.gauge("lethe_governor_price_ratio", "Price of host memory: 0 plenty, 1 at its floor.",
             x_governor->price());
  sink.gauge("lethe_governor_need_bytes", "What the guest is thought to need.",
             static_cast<double>(x_governor->need()));
  sink.gauge("lethe_governor_pressure", "1 while the host is under memory pressure.",
             x_governor->under_pressure() ? 1 : 0);
  sink.gauge("lethe_governor_psi_some_ratio",
             "Part of the last 10 s in which a task waited for memory, at the last look.",
             x_seen.averages.some_avg10 / 100);
  sink.gauge("lethe_governor_trigger_armed", "1 while the host announces memory pressure.",
             x_watch ? 1 : 0);
  sink.counter("lethe_governor_triggers_total", "Times the host announced it.", x_fires);
  sink.counter("lethe_governor_steps_total", "Times the governor looked.", x_steps);
  sink.counter("lethe_governor_changes_total", "Changes it made.", x_changes);
  sink.counter("lethe_governor_pulls_total", "Pulls it started.", x_pulls);
  x_shrinker.report_metrics(sink);
}

}  // namespace lethe
