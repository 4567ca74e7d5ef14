#include "devices/virtio/balloon/balloon_pull.h"

#include <algorithm>

#include "base/log.h"
#include "devices/virtio/balloon/balloon_work.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t tag_of(const BalloonStatistics& statistics, uint16_t tag) {
  const auto found = statistics.tags.find(tag);
  return found == statistics.tags.end() ? 0 : found->second;
}

}  // namespace

BalloonPull::BalloonPull(BalloonWork& work)
    : x_work(work),
      x_timer(work.loop().make_timer([this] { timed_out(); })),
      x_deadline(work.loop().make_timer([this] { finish(false, "it took too long"); })) {}

BalloonPull::~BalloonPull() = default;

uint64_t BalloonPull::reserve(uint64_t total) {
  return std::max(kReserveMin, total / kReserveShare);
}

uint64_t BalloonPull::returned() const {
  const ReturnCounters& counters = x_work.pipeline().counters();
  return counters.freed.load() + counters.moved.load() + counters.lazy.load();
}

uint64_t BalloonPull::given() const { return returned() - x_before; }

void BalloonPull::start(uint64_t bytes, Progress progress, Done done) {
  if (running()) return done({.text = "another pull is running"});
  if (!x_work.live()) return done({.text = "the guest has no balloon driver"});
  ++x_generation;
  x_wanted = bytes;
  x_before = returned();
  x_rounds = 0;
  x_hinted_any = x_hints_dry = x_inflate_dry = x_released = x_topped_up = false;
  x_window_without_statistics = false;
  x_started = Clock::now();
  x_progress = std::move(progress);
  x_done = std::move(done);
  x_work.shared().pulling.store(true);
  x_work.shared().counters.pulls.fetch_add(1, std::memory_order_relaxed);
  x_deadline->start(kPullMax);
  ask();
}

void BalloonPull::stop(const char* why) {
  if (running()) finish(false, why);
}

void BalloonPull::ask() {
  x_step = Step::kStatistics;
  x_asked = Clock::now();
  x_timer->cancel();
  if ((x_work.features() & balloon_bit(VIRTIO_BALLOON_F_STATS_VQ)) == 0) return plan({});
  // It answers in time, with or without the guest.
  x_work.request_statistics([this, generation = x_generation](const BalloonStatistics& answer) {
    if (generation != x_generation || x_step != Step::kStatistics) return;
    if (answer.when < x_asked) return finish(false, "the guest does not answer for its statistics");
    plan(answer);
  });
}

void BalloonPull::plan(const BalloonStatistics& statistics) {
  if (++x_rounds > kRoundsMax) return finish(false, "the guest's free memory does not settle");
  const uint64_t free = tag_of(statistics, VIRTIO_BALLOON_S_MEMFREE);
  const uint64_t kept = reserve(tag_of(statistics, VIRTIO_BALLOON_S_MEMTOT));
  const uint64_t room = free > kept ? free - kept : 0;
  const uint64_t left = x_wanted > given() ? x_wanted - given() : 0;
  const uint64_t want = std::min(room, left);

  const bool hints = x_work.has(BalloonQueue::kHint) && !x_hints_dry && !x_released;
  if (hints && statistics.tags.empty() && left > 0 && !x_window_without_statistics) {
    // Nobody knows what is free: one window that can't hurt.
    x_window_without_statistics = true;
    return start_window(std::min(left, x_work.shared().ram_bytes / 8));
  }
  if (hints && want >= kHintBlock) return start_window(want);

  const bool inflates =
      (x_work.features() & balloon_bit(VIRTIO_BALLOON_F_DEFLATE_ON_OOM)) != 0 && !x_inflate_dry;
  if (inflates && !x_released && want >= kInflateMin) return inflate(std::min(want, kInflateStep));
  if (!x_released) return release();
  // The reserve so far was made of fragments: the free blocks are the reserve now.
  if (inflates && !x_topped_up && want >= kInflateMin) {
    x_topped_up = true;
    return inflate(std::min(want, kept + kTopUp));
  }
  deflate();
}

// --- blocks, by hinting

void BalloonPull::start_window(uint64_t bytes) {
  x_window = bytes;
  x_step = Step::kHintStart;
  x_hinted_any = true;
  // A command id is never used twice (5.5.6.5.2).
  if (++x_last_id <= VIRTIO_BALLOON_CMD_ID_DONE) x_last_id = VIRTIO_BALLOON_CMD_ID_DONE + 1;
  show_hint_id(x_last_id);
  x_timer->start(kPatience);
}

void BalloonPull::hinting_began() {
  if (x_step != Step::kHintStart) return;
  x_step = Step::kHinting;
  x_timer->start(kPatience);
}

// The driver waits in the notification of this very hint: what it reads when it goes on is STOP, so
// a window is overdrawn by no more than a block.
void BalloonPull::hinted(uint64_t bytes) {
  if (x_step != Step::kHinting) return;
  x_window -= std::min(x_window, bytes);
  report_progress();
  if (x_window < kHintBlock) return end_window();
  x_timer->start(kPatience);
}

void BalloonPull::end_window() {
  x_step = Step::kHintStop;
  show_hint_id(VIRTIO_BALLOON_CMD_ID_STOP);
  x_timer->start(kPatience);
}

void BalloonPull::hinting_ended() {
  if (x_step == Step::kHinting) {
    x_hints_dry = true;
    x_work.shared().hint_id.store(VIRTIO_BALLOON_CMD_ID_STOP);
  } else if (x_step != Step::kHintStop) {
    return;
  }
  ask();
}

// --- fragments, by the balloon

void BalloonPull::inflate(uint64_t bytes) {
  x_step = Step::kInflate;
  x_goal = x_work.shared().actual.load() + bytes / kBalloonPage;
  show_num_pages(x_goal);
  x_timer->start(kInflatePatience);
}

void BalloonPull::actual_changed() {
  const uint64_t actual = x_work.shared().actual.load();
  if (x_step == Step::kInflate) {
    report_progress();
    if (actual >= x_goal) return ask();
    x_timer->start(kInflatePatience);
  } else if (x_step == Step::kDeflate) {
    if (actual <= x_goal) return finish(true, "");
    x_timer->start(kPatience);
  }
}

// --- the way back

void BalloonPull::release() {
  x_released = true;
  if (x_hinted_any) show_hint_id(VIRTIO_BALLOON_CMD_ID_DONE);
  // All that is wanted: then there may be more to have from the fragments.
  if (x_wanted > given() && x_work.shared().actual.load() > x_work.shared().target_pages.load())
    return ask();
  deflate();
}

void BalloonPull::deflate() {
  x_step = Step::kDeflate;
  x_goal = x_work.shared().target_pages.load();
  show_num_pages(x_goal);
  if (x_work.shared().actual.load() <= x_goal) return finish(true, "");
  x_timer->start(kPatience);
}

void BalloonPull::target_changed() {
  if (!running()) {
    x_work.shared().num_pages.store(x_work.shared().target_pages.load());
  } else if (x_step == Step::kDeflate) {
    x_goal = x_work.shared().target_pages.load();
    x_work.shared().num_pages.store(static_cast<uint32_t>(x_goal));
  }
}

void BalloonPull::timed_out() {
  switch (x_step) {
    case Step::kHintStart:
      return finish(false, "the guest does not take up hinting");
    case Step::kHinting:
    case Step::kHintStop:
      return finish(false, "the guest stopped hinting without a word");
    case Step::kInflate:
      x_inflate_dry = true;  // "Out of puff!" says Linux, and tries again
      show_num_pages(x_work.shared().actual.load());
      return ask();
    case Step::kDeflate:
      return finish(false, "the guest does not take its pages out of the balloon");
    case Step::kIdle:
    case Step::kStatistics:
      return;
  }
}

// However it ends, the guest gets everything back.
void BalloonPull::finish(bool complete, std::string why) {
  if (!running()) return;
  x_timer->cancel();
  x_deadline->cancel();
  x_step = Step::kIdle;
  if (x_hinted_any && !x_released) show_hint_id(VIRTIO_BALLOON_CMD_ID_DONE);
  BalloonShared& shared = x_work.shared();
  shared.pulling.store(false);
  if (shared.num_pages.load() != shared.target_pages.load())
    show_num_pages(shared.target_pages.load());
  if (!complete) shared.counters.pulls_incomplete.fetch_add(1, std::memory_order_relaxed);
  if (why.empty())
    why = given() >= x_wanted ? "took what was wanted" : "took all that is free but a reserve";
  const PullResult result{
      .bytes = given(),
      .took = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - x_started),
      .complete = complete,
      .text = std::move(why)};
  log_debug(LogModule::kMemory, "pulled {} MiB in {} ms: {}", result.bytes / kMiB,
            result.took.count(), result.text);
  x_progress = {};
  if (const Done done = std::exchange(x_done, {})) done(result);
}

void BalloonPull::show_num_pages(uint64_t pages) {
  x_work.shared().num_pages.store(static_cast<uint32_t>(std::min<uint64_t>(pages, UINT32_MAX)));
  x_work.config_changed();
}

void BalloonPull::show_hint_id(uint32_t id) {
  x_work.shared().hint_id.store(id);
  x_work.config_changed();
}

void BalloonPull::report_progress() {
  if (x_progress) x_progress(given());
}

}  // namespace lethe
