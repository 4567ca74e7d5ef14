// The pull's states, exhaustively: from each moment of a whole pull, every order of a few events,
// good and bad, against a model of the guest. What must hold after each of them is in check(), what
// must hold once a guest has fallen silent in check_end().
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio/balloon/balloon_pull.h"
#include "devices/virtio/balloon/balloon_work.h"

namespace lethe {
namespace {

enum class Event : uint8_t {
  kStatistics,  // the guest answers
  kNoAnswer,    // it did not, in time
  kTakeUp,      // it takes up the hinting command that is shown
  kHint,        // it hints a block
  kStop,        // it says that it has no more, or heard STOP
  kSize,        // it brings its balloon to the size that is shown
  kHalf,        // half of the way
  kLie,         // it says a size that has nothing to do with anything
  kPatience,    // the step's time is up
  kDeadline,    // the pull's time is up
  kReset,       // by the driver, which comes back
  kTarget,      // the user wants a balloon
  kStart,       // another pull
};
constexpr size_t kEvents = 13;

constexpr uint64_t kRam = 64 * kMiB;
constexpr uint64_t kFreeAtFirst = 20 * kMiB;  // and resident; the reserve is 8 MiB of it
constexpr uint64_t kBlock = BalloonPull::kHintBlock;
constexpr uint32_t kTargetPages = 256;

class FakeTimer : public EventLoop::Timer {
 public:
  FakeTimer(EventLoop::Callback call, FakeTimer*& last) : x_call(std::move(call)) { last = this; }
  void start(std::chrono::nanoseconds) override { x_runs = true; }
  void cancel() override { x_runs = false; }
  [[nodiscard]] bool runs() const { return x_runs; }
  bool fire() {
    if (std::exchange(x_runs, false)) return x_call(), true;
    return false;
  }

 private:
  EventLoop::Callback x_call;
  bool x_runs = false;
};

// A guest that tells the truth, but in kLie, and the balloon's other half.
class Model : public PulledBalloon {
 public:
  Model(uint64_t features, uint64_t bytes) : x_features(features), x_wanted(bytes) {
    x_shared.ram_bytes = kRam;
    x_pull = std::make_unique<BalloonPull>(*this);
    start();
  }

  bool live() const override { return true; }
  bool has(BalloonQueue role) const override {
    return role == BalloonQueue::kHint &&
           (x_features & balloon_bit(VIRTIO_BALLOON_F_FREE_PAGE_HINT)) != 0;
  }
  uint64_t features() const override { return x_features; }
  BalloonShared& shared() override { return x_shared; }
  uint64_t resident_bytes() const override { return x_resident; }
  std::unique_ptr<EventLoop::Timer> make_timer(EventLoop::Callback call) override {
    return std::make_unique<FakeTimer>(std::move(call),
                                       x_step_timer == nullptr ? x_step_timer : x_deadline);
  }
  void request_statistics(std::function<void(BalloonStatistics)> done) override {
    x_waiters.push_back(std::move(done));
  }
  void config_changed() override {
    const uint32_t id = hint_id();
    if (id > VIRTIO_BALLOON_CMD_ID_DONE && id != x_last_id) {
      require(id > x_last_id, "a command id was used again");
      x_last_id = id;
    }
    if (id == VIRTIO_BALLOON_CMD_ID_DONE) x_free += std::exchange(x_held, 0);
    const uint64_t asked = x_shared.num_pages.load();
    if (asked > x_shared.target_pages.load() && asked > x_inflated)
      require_reserve(x_free - (asked - x_inflated) * kBalloonPage, "a balloon takes the reserve");
  }

  // False: it can't happen now.
  bool happen(Event event) {
    switch (event) {
      case Event::kStatistics:
        return answer(std::chrono::steady_clock::now());
      case Event::kNoAnswer:
        return answer({});
      case Event::kTakeUp:
        if (hint_id() <= VIRTIO_BALLOON_CMD_ID_DONE || x_answer == hint_id()) return false;
        x_answer = hint_id();
        x_pull->hinting_began();
        return true;
      case Event::kHint:
        return hint();
      case Event::kStop:
        x_answer = VIRTIO_BALLOON_CMD_ID_STOP;
        x_pull->hinting_ended();
        return true;
      case Event::kSize:
        return set_size(x_shared.num_pages.load());
      case Event::kHalf:
        return set_size((x_inflated + x_shared.num_pages.load()) / 2);
      case Event::kLie:
        x_lied = true;
        x_shared.actual.store(x_shared.actual.load() == 0 ? UINT32_MAX : 0);
        x_pull->actual_changed();
        return true;
      case Event::kPatience:
        return x_step_timer->fire();
      case Event::kDeadline:
        return x_deadline->fire();
      case Event::kReset:
        reset();
        return true;
      case Event::kTarget:
        // It may give these pages while it is pulled.
        x_reserve -= std::min(x_reserve, kTargetPages * kBalloonPage);
        x_shared.target_pages.store(x_shared.target_pages.load() == 0 ? kTargetPages : 0);
        x_pull->target_changed();
        config_changed();
        return true;
      case Event::kStart:
        start();
        return true;
    }
    return false;
  }

  // What Linux would do next; false: nothing.
  bool go_on() {
    if (!x_waiters.empty()) return happen(Event::kStatistics);
    if (happen(Event::kTakeUp)) return true;
    if (hints_wanted() && happen(Event::kHint)) return true;
    if (x_answer > VIRTIO_BALLOON_CMD_ID_DONE) return happen(Event::kStop);
    return happen(Event::kSize) || happen(Event::kPatience);
  }
  // The guest says nothing more.
  void fall_silent() {
    constexpr int kStepsMax = 64;
    for (int i = 0; x_pull->running(); ++i) {
      if (i == kStepsMax) return require(false, "a silent guest does not end it");
      require(happen(Event::kNoAnswer) || happen(Event::kPatience), "nothing will end it");
      if (!wrong().empty()) return;
    }
  }

  void check() {
    require(!x_pull->running() || x_deadline->runs(), "it may never end");
    require(!x_pull->running() || x_step_timer->runs() || !x_waiters.empty(),
            "nothing will end its step");
    require(x_shared.pulling.load() == x_pull->running(), "`pulling` is wrong");
    if (!x_pull->running()) check_given_back();
  }
  void check_end() {
    require(!x_pull->running(), "it runs");
    require(x_started == x_ended, "a pull did not say that it ended");
    require(!x_step_timer->runs() && !x_deadline->runs(), "a timer was left");
    check_given_back();
  }
  // A pull of a guest that does its part. False: it did not end well.
  bool pull_well() {
    x_shared.actual.store(static_cast<uint32_t>(x_inflated));  // the truth from now on
    x_pull->actual_changed();
    if (!x_pull->running()) start();
    for (int i = 0; x_pull->running() && i < 64; ++i)
      if (!go_on()) return false;
    return x_complete && !x_pull->running();
  }
  [[nodiscard]] bool running() const { return x_pull->running(); }
  [[nodiscard]] bool complete() const { return x_complete; }  // the last one that ended
  [[nodiscard]] const std::string& wrong() const { return x_wrong; }

 private:
  void require(bool holds, const char* else_what) {
    if (!holds && x_wrong.empty()) x_wrong = else_what;
  }
  void require_reserve(uint64_t left, const char* else_what) {
    // Who lies may lose it.
    require(x_lied || static_cast<int64_t>(left) >= static_cast<int64_t>(x_reserve), else_what);
  }
  [[nodiscard]] uint32_t hint_id() const { return x_shared.hint_id.load(); }
  // As BalloonWork has it: hints count only under the command in force.
  [[nodiscard]] bool hints_wanted() const {
    return x_answer > VIRTIO_BALLOON_CMD_ID_DONE && x_answer == hint_id();
  }
  void check_given_back() {
    require(hint_id() <= VIRTIO_BALLOON_CMD_ID_DONE, "hinting goes on");
    require(x_held == 0, "blocks were not released");
    require(x_shared.num_pages.load() == x_shared.target_pages.load(), "the target is not shown");
  }
  void start() {
    ++x_started;
    x_pull->start(x_wanted, nullptr, [this](const PullResult& result) {
      ++x_ended;
      x_complete = result.complete;
      require(result.bytes <= kFreeAtFirst, "more was given than there was");
      // Up to a block more, by hints; and the user's target may be reached meanwhile.
      constexpr uint64_t kBeside = kBlock + kTargetPages * kBalloonPage;
      require(x_lied || result.bytes < kBeside || result.bytes - kBeside <= x_wanted,
              "more was taken than was wanted");
    });
  }
  bool answer(std::chrono::steady_clock::time_point when) {
    if (x_waiters.empty()) return false;
    const BalloonStatistics said{
        .when = when,
        .tags = {{VIRTIO_BALLOON_S_MEMFREE, x_free}, {VIRTIO_BALLOON_S_MEMTOT, kRam}}};
    for (const auto& waiter : std::exchange(x_waiters, {})) waiter(said);
    return true;
  }
  bool hint() {
    if (x_free < kBlock) return false;
    if (!hints_wanted()) return x_answer > VIRTIO_BALLOON_CMD_ID_DONE;  // ignored
    x_free -= kBlock;
    x_held += kBlock;
    x_resident -= std::min(kBlock, x_resident - (kRam - kFreeAtFirst));
    // Overdrawn by less than a block.
    require_reserve(x_free + kBlock - 1, "a window takes the reserve");
    x_pull->hinted(kBlock);
    return true;
  }
  bool set_size(uint64_t pages) {
    if (pages == x_inflated && x_shared.actual.load() == pages) return false;
    if (pages > x_inflated) {
      const uint64_t bytes = std::min((pages - x_inflated) * kBalloonPage, x_free);
      pages = x_inflated + bytes / kBalloonPage;
      x_free -= bytes;
      x_resident -= std::min(bytes, x_resident - (kRam - kFreeAtFirst));
    } else {
      x_free += (x_inflated - pages) * kBalloonPage;
    }
    x_inflated = pages;
    x_shared.actual.store(static_cast<uint32_t>(pages));
    x_pull->actual_changed();
    return true;
  }
  // As BalloonDevice::reset().
  void reset() {
    x_pull->stop("reset");
    require(!x_pull->running(), "it outlives a reset");
    (void)answer({});
    require(!x_pull->running(), "an answer to nobody began something");
    x_answer = VIRTIO_BALLOON_CMD_ID_STOP;
    x_free += std::exchange(x_held, 0) + std::exchange(x_inflated, 0) * kBalloonPage;
    x_shared.actual.store(0);
    x_shared.hint_id.store(VIRTIO_BALLOON_CMD_ID_STOP);
    x_shared.num_pages.store(x_shared.target_pages.load());
  }

  const uint64_t x_features;
  const uint64_t x_wanted;
  BalloonShared x_shared;
  FakeTimer* x_step_timer = nullptr;
  FakeTimer* x_deadline = nullptr;
  std::vector<std::function<void(BalloonStatistics)>> x_waiters;
  uint32_t x_answer = VIRTIO_BALLOON_CMD_ID_STOP;  // the command id that the guest sent last
  uint32_t x_last_id = VIRTIO_BALLOON_CMD_ID_DONE;
  uint64_t x_free = kFreeAtFirst;
  uint64_t x_resident = kRam;
  uint64_t x_held = 0;
  uint64_t x_inflated = 0;                          // pages
  uint64_t x_reserve = BalloonPull::reserve(kRam);  // what it must be left
  bool x_lied = false;
  int x_started = 0;
  int x_ended = 0;
  bool x_complete = false;
  std::string x_wrong;
  std::unique_ptr<BalloonPull> x_pull;
};

struct Case {
  const char* name;
  uint64_t features;
  uint64_t bytes;
};
class PullOrders : public testing::TestWithParam<Case> {
 protected:
  static constexpr size_t kDepth = 4;
  [[nodiscard]] std::unique_ptr<Model> model() const {
    return std::make_unique<Model>(GetParam().features, GetParam().bytes);
  }
  // The events after `begun` steps of a good guest. Returns how many of them could happen.
  size_t run(size_t begun, const std::array<Event, kDepth>& events) {
    const auto now = model();
    for (size_t i = 0; i < begun; ++i) (void)now->go_on();
    size_t happened = 0;
    while (happened < kDepth && now->wrong().empty() && now->happen(events[happened])) {
      ++happened;
      now->check();
    }
    if (happened == kDepth && now->wrong().empty()) {
      ++x_orders;
      now->fall_silent();
      now->check_end();
      if (now->wrong().empty() && !now->pull_well()) x_wrong = "the next pull did not end well";
      now->check_end();
    }
    if (x_wrong.empty()) x_wrong = now->wrong();
    return happened;
  }
  // The next order whose event `at` is another; false: there is none.
  static bool advance(std::array<Event, kDepth>& events, size_t at) {
    std::fill(events.begin() + static_cast<ptrdiff_t>(at) + 1, events.end(), Event{});
    for (size_t i = at + 1; i-- > 0; events[i] = Event{}) {
      events[i] = static_cast<Event>(static_cast<size_t>(events[i]) + 1);
      if (static_cast<size_t>(events[i]) < kEvents) return true;
    }
    return false;
  }
  size_t x_orders = 0;
  std::string x_wrong;
};

TEST_P(PullOrders, end_with_everything_given_back_and_never_take_the_reserve) {
  const auto whole = model();
  size_t steps = 0;
  while (whole->running() && steps < 64) {
    ASSERT_TRUE(whole->go_on());
    whole->check();
    ++steps;
  }
  ASSERT_EQ(whole->wrong(), "");
  ASSERT_FALSE(whole->running());
  ASSERT_TRUE(whole->complete());
  EXPECT_LE(steps, 12U);  // it waits for nothing that will not come
  for (size_t begun = 0; begun <= steps; ++begun) {
    std::array<Event, kDepth> events{};
    for (size_t last = 0;;) {
      last = std::min(run(begun, events), kDepth - 1);
      std::string order;
      for (const Event event : events) order += std::to_string(static_cast<int>(event)) + " ";
      ASSERT_EQ(x_wrong, "") << begun << " good steps, then events " << order;
      if (!advance(events, last)) break;
    }
  }
  EXPECT_GT(x_orders, 1000U);
  RecordProperty("orders", std::to_string(x_orders));
}

constexpr uint64_t kStats = balloon_bit(VIRTIO_BALLOON_F_STATS_VQ);
constexpr uint64_t kHints = balloon_bit(VIRTIO_BALLOON_F_FREE_PAGE_HINT);
constexpr uint64_t kOom = balloon_bit(VIRTIO_BALLOON_F_DEFLATE_ON_OOM);
INSTANTIATE_TEST_SUITE_P(Guests, PullOrders,
                         testing::Values(Case{"all", kStats | kHints | kOom, UINT64_MAX},
                                         Case{"a_part", kStats | kHints | kOom, 6 * kMiB},
                                         Case{"by_hints_only", kStats | kHints, UINT64_MAX},
                                         Case{"by_balloon_only", kStats | kOom, UINT64_MAX},
                                         Case{"without_statistics", kHints | kOom, UINT64_MAX}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace lethe
