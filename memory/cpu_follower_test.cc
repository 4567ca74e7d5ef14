#include "memory/cpu_follower.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <future>
#include <memory>
#include <thread>
#include <vector>

namespace lethe {
namespace {

cpu_set_t affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  return set;
}

cpu_set_t one(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  return set;
}

bool set_affinity(const cpu_set_t& set) { return ::sched_setaffinity(0, sizeof set, &set) == 0; }

// A thread that sleeps.
class Sleeper {
 public:
  Sleeper() { x_ready.get_future().wait(); }
  ~Sleeper() {
    x_end.set_value();
    x_thread.join();
  }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;
  [[nodiscard]] pid_t id() const { return x_id; }

 private:
  pid_t x_id = 0;
  std::promise<void> x_ready;
  std::promise<void> x_end;
  std::thread x_thread{[this] {
    x_id = ::gettid();
    x_ready.set_value();
    x_end.get_future().wait();
  }};
};

class CpuFollowerTest : public ::testing::Test {
 protected:
  CpuFollowerTest() {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(static_cast<size_t>(cpu), &x_before)) x_cpus.push_back(cpu);
  }
  ~CpuFollowerTest() override { EXPECT_TRUE(set_affinity(x_before)); }
  [[nodiscard]] bool is_on(const cpu_set_t& set) const {
    const cpu_set_t now = affinity();
    return CPU_EQUAL(&now, &set) != 0;
  }
  // The last of the answers that are too few.
  static void almost_follow(CpuFollower& follower, pid_t thread) {
    for (int i = 1; i < CpuFollower::kStreak; ++i) EXPECT_FALSE(follower.answered(thread));
    EXPECT_FALSE(follower.following());
  }

  const cpu_set_t x_before = affinity();
  std::vector<int> x_cpus;
  CpuFollower x_follower;
};

// One that last ran there: a thread that is moved in its sleep says so only when it runs again, so
// it is started there.
std::unique_ptr<Sleeper> sleeper_on(int cpu) {
  const cpu_set_t before = affinity();
  EXPECT_TRUE(set_affinity(one(cpu)));
  auto result = std::make_unique<Sleeper>();
  EXPECT_TRUE(set_affinity(before));
  return result;
}

TEST_F(CpuFollowerTest, tells_where_a_thread_runs) {
  for (const int cpu : x_cpus) {
    const auto sleeper = sleeper_on(cpu);
    EXPECT_EQ(cpu_of_thread(sleeper->id()), cpu);
  }
  EXPECT_EQ(cpu_of_thread(1 << 30), std::nullopt);
}

TEST_F(CpuFollowerTest, joins_who_is_answered_again_and_again_and_goes_back) {
  for (const int cpu : x_cpus) {
    const auto sleeper = sleeper_on(cpu);
    CpuFollower follower;
    almost_follow(follower, sleeper->id());
    EXPECT_TRUE(is_on(x_before));
    EXPECT_TRUE(follower.answered(sleeper->id()));
    EXPECT_TRUE(is_on(one(cpu)));
    EXPECT_EQ(::sched_getcpu(), cpu);
    EXPECT_TRUE(follower.answered(sleeper->id()));
    follower.leave();
    EXPECT_FALSE(follower.following());
    EXPECT_TRUE(is_on(x_before));
    // It still knows where: the next answer is enough.
    EXPECT_TRUE(follower.answered(sleeper->id()));
    follower.leave();
  }
}

TEST_F(CpuFollowerTest, goes_back_when_another_processor_needs_it) {
  if (x_cpus.size() < 2) GTEST_SKIP() << "SKIPPED: needs two processors";
  const auto first = sleeper_on(x_cpus[0]);
  const auto second = sleeper_on(x_cpus[1]);
  almost_follow(x_follower, first->id());
  ASSERT_TRUE(x_follower.answered(first->id()));
  EXPECT_FALSE(x_follower.answered(second->id()));
  EXPECT_TRUE(is_on(x_before));
  // Taking turns is no reason to join either.
  for (int i = 0; i < 8; ++i) {
    EXPECT_FALSE(x_follower.answered(first->id()));
    EXPECT_FALSE(x_follower.answered(second->id()));
  }
}

TEST_F(CpuFollowerTest, goes_back_when_it_answers_nobody_it_knows) {
  const auto sleeper = sleeper_on(x_cpus[0]);
  for (const pid_t unknown : {pid_t{0}, pid_t{1 << 30}}) {
    almost_follow(x_follower, sleeper->id());
    ASSERT_TRUE(x_follower.answered(sleeper->id()));
    EXPECT_FALSE(x_follower.answered(unknown));
    EXPECT_TRUE(is_on(x_before));
  }
}

TEST_F(CpuFollowerTest, stays_where_it_is_allowed_to_run) {
  if (x_cpus.size() < 2) GTEST_SKIP() << "SKIPPED: needs two processors";
  const auto sleeper = sleeper_on(x_cpus[0]);
  ASSERT_TRUE(set_affinity(one(x_cpus[1])));
  for (int i = 0; i < 8; ++i) EXPECT_FALSE(x_follower.answered(sleeper->id()));
  EXPECT_TRUE(is_on(one(x_cpus[1])));
}

TEST_F(CpuFollowerTest, leaves_an_affinity_that_was_set_from_outside) {
  if (x_cpus.size() < 2) GTEST_SKIP() << "SKIPPED: needs two processors";
  const auto sleeper = sleeper_on(x_cpus[0]);
  almost_follow(x_follower, sleeper->id());
  ASSERT_TRUE(x_follower.answered(sleeper->id()));
  ASSERT_TRUE(set_affinity(one(x_cpus[1])));
  x_follower.leave();
  EXPECT_TRUE(is_on(one(x_cpus[1])));
}

}  // namespace
}  // namespace lethe
