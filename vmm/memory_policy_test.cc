#include "vmm/memory_policy.h"

#include <gtest/gtest.h>
#include <linux/virtio_balloon.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

class FakeBalloon : public BalloonControl {
 public:
  void request_statistics(std::function<void(BalloonStatistics)> done) override {
    ++asked;
    now.when = steady_clock::now();
    if (answering) answering(now);
    done(now);
  }
  BalloonStatistics statistics() const override { return now; }
  void set_target(uint64_t bytes) override { x_target = bytes; }
  uint64_t target() const override { return x_target; }
  uint64_t actual() const override { return x_target; }
  void pull(uint64_t bytes, std::function<void(uint64_t)>,
            std::function<void(PullResult)> done) override {
    pulled += bytes;
    done({});
  }
  void on_reports(std::function<void(uint64_t)> listener) override { heard = std::move(listener); }
  void report_metrics(MetricSink&) const override {}
  BalloonStatistics now;
  std::function<void(BalloonStatistics&)> answering;
  std::function<void(uint64_t)> heard;
  int asked = 0;
  uint64_t pulled = 0;

 private:
  uint64_t x_target = 0;
};

class FakeTarget : public MemoryPolicyTarget {
 public:
  bool policy_is_auto() const override { return is_auto; }
  ReturnPolicy policy_now() const override { return in_force; }
  uint64_t pool_max() const override { return max; }
  uint64_t pool_bytes() const override { return 0; }
  uint64_t resident() const override { return in_memory; }
  void apply(ReturnPolicy policy, uint64_t pool_bytes_max) override {
    applied.emplace_back(policy, pool_bytes_max);
  }
  BalloonControl& balloon() override { return guest; }
  bool is_auto = true;
  ReturnPolicy in_force = ReturnPolicy::kPool;
  uint64_t max = 512 * kMiB;
  uint64_t in_memory = 1 * kGiB;
  FakeBalloon guest;
  std::vector<std::pair<ReturnPolicy, uint64_t>> applied;
};

class OneObject : public ShrinkableCache {
 public:
  std::string_view name() const override { return "one"; }
  uint64_t object_bytes() const override { return 100; }
  uint64_t count() const override { return there; }
  Scanned scan(uint64_t) override { return {.freed = std::exchange(there, 0), .asked = 0}; }
  uint64_t purged_bytes() const override { return there == 0 ? 100 : 0; }
  uint64_t there = 1;
};

// Host files below a directory, beats of 5 ms instead of a second.
class MemoryPolicyTest : public testing::Test {
 protected:
  MemoryPolicyTest() {
    std::string path = testing::TempDir() + "/lethe-policy-XXXXXX";
    root_ = ::mkdtemp(path.data());
    options_.guest_size = 4 * kGiB;
    options_.host_root = root_;
    options_.beat_min = milliseconds(5);
    target_.guest.now.tags = {{VIRTIO_BALLOON_S_MEMFREE, 2 * kGiB},
                              {VIRTIO_BALLOON_S_AVAIL, 3 * kGiB}};
    available(14);
  }
  ~MemoryPolicyTest() override { std::filesystem::remove_all(root_); }
  void available(int gib) {
    std::filesystem::create_directories(root_ + "/proc");
    // Whole at once: the loop may read at any time.
    std::ofstream(root_ + "/proc/new") << "MemTotal: " << 16 * 1024 * 1024
                                       << " kB\nMemAvailable: " << gib * 1024 * 1024 << " kB\n";
    std::filesystem::rename(root_ + "/proc/new", root_ + "/proc/meminfo");
  }
  void run(milliseconds time) {
    auto end = loop_.make_timer([this] { loop_.stop(); });
    end->start(time);
    loop_.run();
  }
  // Runs the loop until it is so; false after 10 s.
  bool run_until(const std::function<bool()>& condition) {
    const auto deadline = steady_clock::now() + milliseconds(10'000);
    while (!condition()) {
      if (steady_clock::now() > deadline) return false;
      run(milliseconds(5));
    }
    return true;
  }
  std::string root_;
  EventLoop loop_;
  MemoryPolicyOptions options_;
  FakeTarget target_;
  Shrinker shrinker_;
};

TEST_F(MemoryPolicyTest, idle_vm_without_memory_auto_is_never_woken) {
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  run(milliseconds(150));
  EXPECT_EQ(policy.steps(), 0U);
  EXPECT_EQ(target_.guest.asked, 0);
  EXPECT_TRUE(target_.applied.empty());
}

TEST_F(MemoryPolicyTest, memory_auto_looks_now_and_then_and_leaves_an_idle_host_alone) {
  options_.automatic = true;
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  ASSERT_TRUE(run_until([&] { return policy.steps() >= 3; }));
  EXPECT_GE(target_.guest.asked, 2);
  EXPECT_TRUE(target_.applied.empty());
  EXPECT_EQ(target_.guest.target(), 0U);
  EXPECT_TRUE(policy.decisions().empty());
}

TEST_F(MemoryPolicyTest, memory_auto_follows_reports_with_a_pull_of_everything_now_and_then) {
  options_.automatic = true;
  options_.beat_min = milliseconds(50);
  target_.in_force = ReturnPolicy::kDiscard;
  auto policy = std::make_unique<MemoryPolicyLoop>(loop_, options_, target_, shrinker_);
  policy->start();
  target_.guest.heard(MemoryPolicyLoop::kFollowBytes / 2);
  run(milliseconds(5));
  EXPECT_EQ(target_.guest.pulled, 0U);  // not for so little
  target_.guest.heard(MemoryPolicyLoop::kFollowBytes / 2);
  ASSERT_TRUE(run_until([&] { return target_.guest.pulled == UINT64_MAX; }));
  ASSERT_FALSE(policy->decisions().empty());
  EXPECT_NE(policy->decisions().back().text.find("64 MiB"), std::string::npos);
  target_.guest.pulled = 0;
  target_.guest.heard(MemoryPolicyLoop::kFollowBytes);
  run(milliseconds(5));
  EXPECT_EQ(target_.guest.pulled, 0U);  // not so soon again
  run(MemoryPolicyLoop::kFollowBeats * options_.beat_min);
  target_.guest.heard(1);
  ASSERT_TRUE(run_until([&] { return target_.guest.pulled == UINT64_MAX; }));
  target_.guest.pulled = 0;
  run(MemoryPolicyLoop::kFollowBeats * options_.beat_min);
  target_.guest.heard(MemoryPolicyLoop::kFollowBytes);
  policy.reset();
  target_.guest.heard(MemoryPolicyLoop::kFollowBytes);
  run(milliseconds(5));  // what was posted for it finds nobody
  EXPECT_EQ(target_.guest.pulled, 0U);
}

TEST_F(MemoryPolicyTest, reports_are_not_followed_while_the_pool_takes_them_on_an_idle_host) {
  options_.automatic = true;
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  target_.guest.heard(1 * kGiB);
  run(milliseconds(20));
  EXPECT_EQ(target_.guest.pulled, 0U);
  available(1);  // the host runs short
  ASSERT_TRUE(run_until([&] {
    target_.guest.heard(1);
    const auto lines = policy.decisions();
    return std::ranges::any_of(lines, [](const auto& line) {
      return line.text.find("began to report") != std::string::npos;
    });
  }));
}

TEST_F(MemoryPolicyTest, reports_are_followed_from_the_moment_that_memory_auto_is_switched_on) {
  target_.is_auto = false;  // the user said "discard"
  target_.in_force = ReturnPolicy::kDiscard;
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  EXPECT_FALSE(target_.guest.heard);
  policy.set_automatic(true);
  policy.start();
  ASSERT_TRUE(target_.guest.heard);
  target_.guest.heard(1 * kGiB);
  ASSERT_TRUE(run_until([&] { return target_.guest.pulled == UINT64_MAX; }));
  policy.set_automatic(false);
  EXPECT_FALSE(target_.guest.heard);
}

struct NeedSink : MetricSink {
  void counter(std::string_view, std::string_view, uint64_t, Labels) override {}
  void gauge(std::string_view name, std::string_view, double value, Labels) override {
    if (name == "lethe_governor_need_bytes") need = value;
  }
  void histogram(std::string_view, std::string_view, const Histogram::Snapshot&, Labels) override {}
  double need = -1;
};

// Each at a pace that would be bearable if it were taken for another one.
TEST_F(MemoryPolicyTest, each_sign_of_missing_memory_reaches_the_governor_as_itself) {
  struct Sign {
    uint16_t tag;
    uint64_t a_second;
    uint64_t free;  // in the guest: with much of it only kills count
  };
  options_.automatic = true;
  options_.beat_min = milliseconds(10);
  for (const Sign& sign :
       {Sign{VIRTIO_BALLOON_S_MAJFLT, 1000, 0}, Sign{VIRTIO_BALLOON_S_SWAP_IN, 16 * kMiB, 0},
        Sign{kBalloonStatAllocStall, 16, 0}, Sign{kBalloonStatOomKill, 16, 2 * kGiB}}) {
    SCOPED_TRACE(sign.tag);
    FakeTarget target;
    target.guest.now.tags = {
        {VIRTIO_BALLOON_S_MEMFREE, sign.free}, {VIRTIO_BALLOON_S_AVAIL, 3 * kGiB},
        {VIRTIO_BALLOON_S_MAJFLT, 0},          {VIRTIO_BALLOON_S_SWAP_IN, 0},
        {kBalloonStatAllocStall, 0},           {kBalloonStatOomKill, 0}};
    MemoryPolicyLoop policy(loop_, options_, target, shrinker_);
    policy.start();
    const auto need = [&] {
      NeedSink sink;
      policy.report_metrics(sink);
      return sink.need;
    };
    ASSERT_TRUE(run_until([&] { return policy.steps() >= 3; }));
    const double calm = need();
    ASSERT_LT(calm, 2 * kGiB);
    const auto since = steady_clock::now();
    target.guest.answering = [&](BalloonStatistics& answer) {
      const std::chrono::duration<double> time = steady_clock::now() - since;
      answer.tags[sign.tag] =
          static_cast<uint64_t>(time.count() * static_cast<double>(sign.a_second));
    };
    EXPECT_TRUE(run_until([&] { return need() > calm; }));
  }
}

TEST_F(MemoryPolicyTest, scarce_host_makes_discard_purge_pull_and_balloon_with_reasons) {
  options_.automatic = true;
  target_.in_memory = 4 * kGiB;  // though 2 GiB are free in the guest
  OneObject cache;
  const auto registration = shrinker_.add(cache);
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  ASSERT_TRUE(run_until([&] { return policy.steps() >= 2; }));
  available(1);
  ASSERT_TRUE(run_until([&] { return target_.guest.target() > 0 && target_.guest.pulled > 0; }));
  ASSERT_FALSE(target_.applied.empty());
  EXPECT_EQ(target_.applied.back(), std::pair(ReturnPolicy::kDiscard, uint64_t{0}));
  EXPECT_EQ(cache.there, 0U);
  std::map<std::string, int> kinds;
  for (const auto& line : policy.decisions()) {
    ++kinds[line.text.substr(0, line.text.find(' '))];
    EXPECT_NE(line.text.find("price "), std::string::npos) << line.text;
  }
  for (const char* kind : {"policy", "pool", "purge", "pull", "balloon"}) EXPECT_GE(kinds[kind], 1);
}

// Memory is scarce, but not very: others give, the one that the user looks at does not.
TEST_F(MemoryPolicyTest, vm_with_focus_is_spared_until_it_loses_it) {
  options_.automatic = true;
  target_.in_memory = 4 * kGiB;
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.set_focus(true);
  policy.start();
  ASSERT_TRUE(run_until([&] { return policy.steps() >= 2; }));
  available(3);
  const uint64_t before = policy.steps();
  ASSERT_TRUE(run_until([&] { return policy.steps() >= before + 20; }));
  EXPECT_EQ(target_.guest.target(), 0U);
  policy.set_focus(false);
  EXPECT_TRUE(run_until([&] { return target_.guest.target() > 0; }));
}

TEST_F(MemoryPolicyTest, policy_that_the_user_set_is_left_alone) {
  options_.automatic = true;
  target_.is_auto = false;
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  available(1);
  ASSERT_TRUE(run_until([&] { return target_.guest.target() > 0; }));
  EXPECT_TRUE(target_.applied.empty());
  for (const auto& line : policy.decisions()) EXPECT_NE(line.text.substr(0, 6), "policy");
}

TEST_F(MemoryPolicyTest, neither_auto_starts_nothing_until_the_user_says_so) {
  target_.is_auto = false;
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  available(1);
  run(milliseconds(50));
  EXPECT_EQ(policy.steps(), 0U);
}

TEST_F(MemoryPolicyTest, pool_size_that_the_user_changed_is_what_is_scaled) {
  options_.automatic = true;
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  target_.max = 128 * kMiB;
  policy.start();
  available(2);
  ASSERT_TRUE(run_until([&] { return !target_.applied.empty(); }));
  for (const auto& [word, bytes] : target_.applied) EXPECT_LE(bytes, 128 * kMiB);
}

TEST_F(MemoryPolicyTest, memory_auto_is_switched_on_and_off_and_then_gives_the_balloon_back) {
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  available(1);
  run(milliseconds(30));
  EXPECT_EQ(target_.guest.target(), 0U);
  policy.set_automatic(true);
  ASSERT_TRUE(run_until([&] { return target_.guest.target() > 0; }));
  policy.set_automatic(false);
  EXPECT_FALSE(policy.automatic());
  EXPECT_EQ(target_.guest.target(), 0U);
  run(milliseconds(50));
  EXPECT_EQ(target_.guest.target(), 0U);
}

TEST_F(MemoryPolicyTest, kept_decisions_are_bounded) {
  options_.automatic = true;
  options_.beat_min = milliseconds(1);
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  for (int i = 0; i < 30; ++i) {
    available(i % 2 == 0 ? 1 : 14);
    run(milliseconds(10));
  }
  EXPECT_LE(policy.decisions().size(), MemoryPolicyLoop::kDecisionsKept);
  EXPECT_GT(policy.decisions().size(), 0U);
}

TEST_F(MemoryPolicyTest, guest_without_statistics_keeps_its_memory) {
  options_.automatic = true;
  target_.guest.now.tags.clear();
  MemoryPolicyLoop policy(loop_, options_, target_, shrinker_);
  policy.start();
  available(1);
  ASSERT_TRUE(run_until([&] { return policy.steps() >= 20; }));
  EXPECT_EQ(target_.guest.target(), 0U);
}

}  // namespace
}  // namespace lethe
