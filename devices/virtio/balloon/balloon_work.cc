#include "devices/virtio/balloon/balloon_work.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "devices/virtio/balloon/balloon_pull.h"

namespace lethe {

BalloonQueue balloon_queue(uint64_t features, uint16_t index) {
  constexpr struct {
    BalloonQueue role;
    uint64_t needs;
  } kOrder[] = {
      {BalloonQueue::kInflate, 0},
      {BalloonQueue::kDeflate, 0},
      {BalloonQueue::kStatistics, balloon_bit(VIRTIO_BALLOON_F_STATS_VQ)},
      {BalloonQueue::kHint, balloon_bit(VIRTIO_BALLOON_F_FREE_PAGE_HINT)},
      {BalloonQueue::kReport, balloon_bit(VIRTIO_BALLOON_F_REPORTING)},
  };
  for (const auto& entry : kOrder) {
    if ((features & entry.needs) != entry.needs) continue;
    if (index-- == 0) return entry.role;
  }
  return BalloonQueue::kNone;
}

BalloonWork::BalloonWork(EventLoop& loop, ReturnPipeline& pipeline, BalloonShared& shared)
    : x_loop(loop),
      x_pipeline(pipeline),
      x_shared(shared),
      x_returns(pipeline, shared.counters),
      x_statistics_timer(loop.make_timer([this] {
        x_shared.counters.statistics_late.fetch_add(1, std::memory_order_relaxed);
        answer_waiters();
      })),
      x_pull(std::make_unique<BalloonPull>(*this)) {}

BalloonWork::~BalloonWork() { stop_all(); }

void BalloonWork::start(uint64_t features, VirtioHost& host) {
  x_features = features;
  x_host = &host;
  take_poison();
}

void BalloonWork::take_poison() {
  const bool poisons = (x_features & balloon_bit(VIRTIO_BALLOON_F_PAGE_POISON)) != 0;
  x_pipeline.set_poison(poisons ? x_shared.poison.load() : 0);
}

void BalloonWork::freeze() { x_pull->stop("the machine is frozen for a snapshot"); }

uint32_t BalloonWork::last_hint_id() const { return x_pull->last_id(); }

void BalloonWork::go_on(uint32_t last_hint_id) {
  x_pull->set_last_id(last_hint_id);
  take_poison();
}

void BalloonWork::start_queue(BalloonQueue role, std::unique_ptr<Queue> queue,
                              const EventFd& kick) {
  if (role == BalloonQueue::kNone) return;
  Line& target = line(role);
  target.queue = std::move(queue);
  target.kick = &kick;
  if (role == BalloonQueue::kHint) return;
  auto watch = x_loop.watch_event(kick.fd(), [this, role] { serve(role); });
  if (!watch) {
    LETHE_LOG_LIMITED(LogModule::kVirtio, "balloon: cannot watch a queue: {}", watch.error().text);
    return x_host->needs_reset("the host is out of descriptors");
  }
  target.watch = std::move(*watch);
  serve(role);
}

void BalloonWork::stop_queue(BalloonQueue role) {
  if (role == BalloonQueue::kNone) return;
  Line& target = line(role);
  if (!target.queue) return;
  target.watch.reset();
  if (role == BalloonQueue::kStatistics) x_statistics_chain.reset();
  x_returns.leave(*target.queue);
  target.queue.reset();
  target.kick = nullptr;
}

void BalloonWork::stop_all() {
  x_pull->stop("the guest reset the balloon");
  for (size_t i = 0; i < x_lines.size(); ++i) stop_queue(static_cast<BalloonQueue>(i));
  x_statistics_timer->cancel();
  answer_waiters();
  x_host = nullptr;
  x_features = 0;
  x_hint_answer = VIRTIO_BALLOON_CMD_ID_STOP;
}

void BalloonWork::config_changed() {
  if (x_host != nullptr) x_host->config_changed();
}

void BalloonWork::drop_if_broken(BalloonQueue role) {
  Line& target = line(role);
  if (!target.queue || !target.queue->broken()) return;
  x_host->needs_reset(target.queue->broken_reason());
  stop_queue(role);
}

void BalloonWork::serve(BalloonQueue role) {
  if (!line(role).queue) return;
  if (role == BalloonQueue::kDeflate)
    serve_deflate();
  else if (role == BalloonQueue::kStatistics)
    serve_statistics();
  else
    serve_returns(role);
  drop_if_broken(role);
}

void BalloonWork::serve_returns(BalloonQueue role) {
  Line& target = line(role);
  const auto source =
      role == BalloonQueue::kInflate ? ReturnSource::kInflate : ReturnSource::kReport;
  const auto brought = [&counters = x_pipeline.counters()] {
    return counters.freed.load(std::memory_order_relaxed) +
           counters.moved.load(std::memory_order_relaxed);
  };
  const uint64_t before = brought();
  do {
    if (x_returns.serve(*target.queue, source)) continue;
    target.kick->signal();  // come back after the loop's other work
    break;
  } while (!target.queue->broken() && target.queue->enable_kicks());
  if (role != BalloonQueue::kReport || brought() == before) return;
  MutexLock lock(x_shared.mutex);
  if (x_shared.heard) x_shared.heard(brought() - before);
}

// Nothing to do but to count: the pages are holes, and memory comes back when they are touched.
void BalloonWork::serve_deflate() {
  Line& target = line(BalloonQueue::kDeflate);
  uint16_t left = target.queue->size();
  do {
    while (left > 0) {
      auto chain = target.queue->pop();
      if (!chain) break;
      --left;
      if (chain->writable_bytes() != 0 || chain->readable_bytes() % sizeof(uint32_t) != 0)
        x_shared.counters.chains_refused.fetch_add(1, std::memory_order_relaxed);
      else
        x_shared.counters.deflated_pages.fetch_add(chain->readable_bytes() / sizeof(uint32_t),
                                                   std::memory_order_relaxed);
      chain->complete(0);
    }
  } while (left > 0 && !target.queue->broken() && target.queue->enable_kicks());
  target.queue->interrupt_if_needed();
  if (left == 0) target.kick->signal();
}

// --- statistics

// One buffer is kept; further ones, which the driver must not add, wait in the ring.
void BalloonWork::serve_statistics() {
  Line& target = line(BalloonQueue::kStatistics);
  do {
    if (x_statistics_chain) return;
    auto chain = target.queue->pop();
    if (!chain) continue;
    if (chain->writable_bytes() != 0) {
      x_shared.counters.chains_refused.fetch_add(1, std::memory_order_relaxed);
    } else {
      read_statistics(*chain);
    }
    x_statistics_chain = std::move(chain);
    answer_waiters();
  } while (!target.queue->broken() && target.queue->enable_kicks());
}

void BalloonWork::read_statistics(const Chain& chain) {
  std::array<virtio_balloon_stat, kStatisticsMax> entries;
  static_assert(sizeof(virtio_balloon_stat) == 10);
  // SAFETY: packed structures of integers, seen as their bytes; little-endian like the wire.
  const size_t bytes =
      chain.copy_from_readable(0, {reinterpret_cast<uint8_t*>(entries.data()), sizeof entries});
  BalloonStatistics now{.when = std::chrono::steady_clock::now(), .tags = {}};
  for (size_t i = 0; i < bytes / sizeof(virtio_balloon_stat); ++i)
    now.tags[entries[i].tag] = entries[i].val;
  x_shared.counters.statistics.fetch_add(1, std::memory_order_relaxed);
  MutexLock lock(x_shared.mutex);
  x_shared.statistics = std::move(now);
}

void BalloonWork::request_statistics(std::function<void(BalloonStatistics)> done) {
  const bool asked = !x_waiters.empty();
  const bool possible = has(BalloonQueue::kStatistics) && (asked || x_statistics_chain);
  if (!possible || x_waiters.size() == kWaitersMax) return done(x_shared.known());
  x_waiters.push_back(std::move(done));
  if (asked) return;
  x_statistics_timer->start(kStatisticsPatience);
  Queue& queue = *line(BalloonQueue::kStatistics).queue;
  x_statistics_chain->complete(0);
  x_statistics_chain.reset();
  queue.interrupt_if_needed();
}

void BalloonWork::answer_waiters() {
  x_statistics_timer->cancel();
  if (x_waiters.empty()) return;
  const BalloonStatistics known = x_shared.known();
  for (const auto& waiter : std::exchange(x_waiters, {})) waiter(known);
}

// --- hints

void BalloonWork::hints_kicked() {
  Line& target = line(BalloonQueue::kHint);
  if (!target.queue) return;
  uint64_t budget = kKickBytesMax;
  uint16_t left = target.queue->size();
  do {
    while (left > 0) {
      auto chain = target.queue->pop();
      if (!chain) break;
      --left;
      serve_hint(*chain, budget);
      chain->complete(0);
    }
  } while (left > 0 && !target.queue->broken() && target.queue->enable_kicks());
  target.queue->interrupt_if_needed();
  drop_if_broken(BalloonQueue::kHint);
}

// The driver has answered with the command id in force, not with an older one's.
bool BalloonWork::hints_wanted() const {
  return x_hint_answer > VIRTIO_BALLOON_CMD_ID_DONE && x_hint_answer == x_shared.hint_id.load();
}

// 5.5.6.5: a readable buffer of 4 bytes is a command id: the answer to ours, or STOP at the end of
// what the driver has. Writable ones are pages, of no use unless they belong to our command.
void BalloonWork::serve_hint(Chain& chain, uint64_t& budget) {
  BalloonCounters& counters = x_shared.counters;
  if (chain.readable_bytes() > 0) {
    uint32_t id = 0;
    // SAFETY: an integer, seen as its bytes; little-endian like the wire.
    if (chain.readable_bytes() != sizeof id || chain.writable_bytes() != 0 ||
        chain.copy_from_readable(0, {reinterpret_cast<uint8_t*>(&id), sizeof id}) != sizeof id) {
      counters.chains_refused.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    x_hint_answer = id;
    if (hints_wanted())
      x_pull->hinting_began();
    else if (id == VIRTIO_BALLOON_CMD_ID_STOP)
      x_pull->hinting_ended();
    return;
  }
  const uint64_t bytes = chain.writable_bytes();
  if (!hints_wanted() || bytes > budget) {
    counters.hints_ignored.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  budget -= bytes;
  // The driver waits: whatever the other queues have under way ends first.
  x_returns.settle();
  uint64_t taken = 0;
  for (const IoSlice& slice : chain.writable()) {
    auto added = x_pipeline.add(slice, ReturnSource::kHint);
    if (added == ReturnPipeline::Added::kFull) {
      x_pipeline.flush_all();
      added = x_pipeline.add(slice, ReturnSource::kHint);
    }
    if (added == ReturnPipeline::Added::kTaken) taken += slice.size;
  }
  x_pipeline.flush_all();
  x_pipeline.given_back(taken);
  counters.hints.fetch_add(1, std::memory_order_relaxed);
  x_pull->hinted(taken);
}

// --- target and pull

void BalloonWork::target_changed() {
  x_pull->target_changed();
  config_changed();
}

void BalloonWork::actual_changed() { x_pull->actual_changed(); }

void BalloonWork::pull(uint64_t bytes, std::function<void(uint64_t)> progress,
                       std::function<void(PullResult)> done) {
  x_pull->start(bytes, std::move(progress), std::move(done));
}

}  // namespace lethe
