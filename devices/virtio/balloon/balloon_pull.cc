#include "devices/virtio/balloon/balloon_pull.h"

#include <algorithm>
#include <utility>

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

BalloonPull::BalloonPull(PulledBalloon& balloon)
    : x_balloon(balloon),
      x_timer(balloon.make_timer([this] { timed_out(); })),
      x_deadline(balloon.make_timer([this] { finish(false, "it took too long"); })) {}

BalloonPull::~BalloonPull() = default;

uint64_t BalloonPull::reserve(uint64_t total) {
  return std::max(kReserveMin, total / kReserveShare);
}

uint64_t BalloonPull::given() const {
  return x_resident_before > x_resident ? x_resident_before - x_resident : 0;
}

void BalloonPull::start(uint64_t bytes, Progress progress, Done done) {
  if (running()) {
    if (x_waiting) return done({.text = "one pull runs and another waits already"});
    x_waiting.emplace(Waiting{bytes, std::move(progress), std::move(done)});
    return;
  }
  if (!x_balloon.live()) return done({.text = "the guest has no balloon driver"});
  ++x_generation;
  x_wanted = bytes;
  x_resident_before = x_resident = x_balloon.resident_bytes();
  x_held = x_free = x_step_bytes = 0;
  x_window_size = kFirstWindow;
  x_inflate_size = kFirstStep;
  x_rounds = x_release_looks = x_poor_windows = x_poor_steps = 0;
  x_hints_dry = x_inflate_dry = x_hinted_any = x_inflated_any = false;
  x_released = x_topped_up = x_window_without_statistics = false;
  x_started = Clock::now();
  x_progress = std::move(progress);
  x_done = std::move(done);
  x_balloon.shared().pulling.store(true);
  x_balloon.shared().counters.pulls.fetch_add(1, std::memory_order_relaxed);
  x_deadline->start(kPullMax);
  ask();
}

void BalloonPull::stop(const char* why) {
  const auto waiting = std::exchange(x_waiting, std::nullopt);
  if (running()) finish(false, why);
  if (waiting) waiting->done({.text = why});
}

void BalloonPull::ask() {
  x_step = Step::kStatistics;
  x_asked = Clock::now();
  x_timer->cancel();
  if ((x_balloon.features() & balloon_bit(VIRTIO_BALLOON_F_STATS_VQ)) == 0) return plan(look({}));
  // It answers in time, with or without the guest.
  x_balloon.request_statistics([this, generation = x_generation](const BalloonStatistics& answer) {
    if (generation != x_generation || x_step != Step::kStatistics) return;
    if (answer.when < x_asked) return finish(false, "the guest does not answer for its statistics");
    plan(look(answer));
  });
}

BalloonPull::Look BalloonPull::look(const BalloonStatistics& statistics) {
  x_resident = x_balloon.resident_bytes();
  const uint64_t ram = x_balloon.shared().ram_bytes;
  const uint64_t free = std::min(tag_of(statistics, VIRTIO_BALLOON_S_MEMFREE), ram);
  Look now{.kept = reserve(std::min(tag_of(statistics, VIRTIO_BALLOON_S_MEMTOT), ram)),
           .told = !statistics.tags.empty()};
  now.room = free > now.kept ? free - now.kept : 0;
  // What is free beyond what the last step left was held: the guest's shrinker takes blocks back.
  const uint64_t expected = x_free > x_step_bytes ? x_free - x_step_bytes : 0;
  if (x_step_bytes > 0 && free > expected) x_held -= std::min(x_held, free - expected);
  x_free = free;
  // Everything else is in use, and resident but for little: holes of the kernel's, never touched.
  const uint64_t unused = free + x_held + x_balloon.shared().actual.load() * kBalloonPage;
  const uint64_t used = ram > unused ? ram - unused : 0;
  now.gain = x_resident > used ? x_resident - used : 0;
  if (now.gain < std::max(kGainMin, free / kGainShare)) now.gain = 0;
  log_debug(
      LogModule::kMemory,
      "pull: {} ms, resident {} MiB, free {} MiB, held {} MiB, balloon {} MiB, to gain {} KiB",
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - x_started).count(),
      x_resident / kMiB, free / kMiB, x_held / kMiB,
      x_balloon.shared().actual.load() * kBalloonPage / kMiB, now.gain / kKiB);
  if (x_progress) x_progress(given());
  return now;
}

// A step that brought little more than nothing was about memory that is not there.
void BalloonPull::judge_last_step(const Look& now) {
  const uint64_t gained = x_step_resident > x_resident ? x_step_resident - x_resident : 0;
  const bool poor = gained < x_step_bytes / 4;
  x_step_bytes = 0;
  uint64_t& size = x_inflated_any ? x_inflate_size : x_window_size;
  unsigned& poor_ones = x_inflated_any ? x_poor_steps : x_poor_windows;
  bool& dry = x_inflated_any ? x_inflate_dry : x_hints_dry;
  if (poor)
    dry |= ++poor_ones >= kPoorMax || now.gain == 0;
  else
    size = std::min(2 * size, x_inflated_any ? kInflateStep : kWindowMax);
}

void BalloonPull::plan(const Look& now) {
  if (++x_rounds > kRoundsMax) return finish(false, "the guest's free memory does not settle");
  if (x_step_bytes > 0) judge_last_step(now);
  const uint64_t left = x_wanted > given() ? x_wanted - given() : 0;

  const bool hints = x_balloon.has(BalloonQueue::kHint) && !x_hints_dry && !x_released;
  if (hints && !now.told && left > 0 && !x_window_without_statistics) {
    // Nobody knows what is free: one window that can't hurt.
    x_window_without_statistics = true;
    return start_window(std::min(left, x_balloon.shared().ram_bytes / 8));
  }
  const uint64_t want = std::min(now.room, left);
  const uint64_t window = std::min({want, std::max(now.gain, x_window_size), kWindowMax});
  if (hints && window >= kHintBlock) return start_window(window);

  const bool inflates =
      (x_balloon.features() & balloon_bit(VIRTIO_BALLOON_F_DEFLATE_ON_OOM)) != 0 && !x_inflate_dry;
  const uint64_t step = std::min({want, std::max(now.gain, x_inflate_size), kInflateStep});
  if (inflates && !x_released && step >= kInflateMin) return inflate(step);
  if (!x_released) return release(left > 0 && inflates && (now.gain > 0 || x_inflated_any));
  // The reserve so far was made of fragments: the free blocks are the reserve now.
  const uint64_t top_up = std::min(want, std::max(now.gain, now.kept));
  if (inflates && !x_topped_up && top_up >= kInflateMin) {
    x_topped_up = true;
    return inflate(top_up);
  }
  // The guest answered for its statistics before it got round to its blocks: a moment more.
  const bool comes = x_hinted_any && now.room < kInflateMin;
  if (inflates && !x_topped_up && comes && x_release_looks++ < kReleaseLooksMax) {
    x_step = Step::kRelease;
    return x_timer->start(kReleasePause);
  }
  deflate();
}

// --- blocks, by hinting

void BalloonPull::start_window(uint64_t bytes) {
  x_window = bytes;
  x_step_resident = x_resident;
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
  x_window_began = Clock::now();
  x_timer->start(kPatience);
}

// The driver waits in the notification of this very hint: what it reads when it goes on is STOP, so
// a window is overdrawn by no more than a block.
void BalloonPull::hinted(uint64_t bytes) {
  if (x_step != Step::kHinting) return;
  x_window -= std::min(x_window, bytes);
  x_held += bytes;
  x_step_bytes += bytes;
  if (x_window < kHintBlock || Clock::now() - x_window_began > kWindowTime) return end_window();
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
    x_balloon.shared().hint_id.store(VIRTIO_BALLOON_CMD_ID_STOP);
  } else if (x_step != Step::kHintStop) {
    return;
  }
  ask();
}

// --- fragments, by the balloon

void BalloonPull::inflate(uint64_t bytes) {
  x_step = Step::kInflate;
  x_inflated_any = true;
  x_step_bytes = bytes;
  x_step_resident = x_resident;
  x_goal = x_balloon.shared().actual.load() + bytes / kBalloonPage;
  show_num_pages(x_goal);
  x_timer->start(kInflatePatience);
}

void BalloonPull::actual_changed() {
  const uint64_t actual = x_balloon.shared().actual.load();
  if (x_step == Step::kInflate) {
    if (actual >= x_goal) return ask();
    x_timer->start(kInflatePatience);
  } else if (x_step == Step::kDeflate) {
    if (actual <= x_goal) return finish(true, "");
    x_timer->start(kPatience);
  }
}

// --- the way back

void BalloonPull::release(bool more) {
  x_released = true;
  x_held = 0;
  if (x_hinted_any) show_hint_id(VIRTIO_BALLOON_CMD_ID_DONE);
  if (more) return ask();
  deflate();
}

void BalloonPull::deflate() {
  x_step = Step::kDeflate;
  x_goal = x_balloon.shared().target_pages.load();
  show_num_pages(x_goal);
  if (x_balloon.shared().actual.load() <= x_goal) return finish(true, "");
  x_timer->start(kPatience);
}

void BalloonPull::target_changed() {
  if (!running()) {
    x_balloon.shared().num_pages.store(x_balloon.shared().target_pages.load());
  } else if (x_step == Step::kDeflate) {
    x_goal = x_balloon.shared().target_pages.load();
    x_balloon.shared().num_pages.store(static_cast<uint32_t>(x_goal));
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
      show_num_pages(x_balloon.shared().actual.load());
      return ask();
    case Step::kDeflate:
      return finish(false, "the guest does not take its pages out of the balloon");
    case Step::kRelease:
      return ask();
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
  x_resident = x_balloon.resident_bytes();
  if (x_hinted_any && !x_released) show_hint_id(VIRTIO_BALLOON_CMD_ID_DONE);
  BalloonShared& shared = x_balloon.shared();
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
  if (auto next = std::exchange(x_waiting, std::nullopt))
    start(next->bytes, std::move(next->progress), std::move(next->done));
}

void BalloonPull::show_num_pages(uint64_t pages) {
  x_balloon.shared().num_pages.store(static_cast<uint32_t>(std::min<uint64_t>(pages, UINT32_MAX)));
  x_balloon.config_changed();
}

void BalloonPull::show_hint_id(uint32_t id) {
  x_balloon.shared().hint_id.store(id);
  x_balloon.config_changed();
}

}  // namespace lethe
