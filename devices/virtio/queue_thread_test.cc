// Driver and device on two threads, each asleep whenever it has nothing to do: no wake-up is lost.
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "base/event_fd.h"
#include "devices/virtio/fake_driver.h"
#include "devices/virtio/queue.h"
#include "devices/virtio/queue_test_util.h"

namespace lethe {
namespace {

constexpr std::chrono::milliseconds kLost{5000};  // nothing takes so long but a lost wake-up

bool wait_kick(const EventFd& kick) {
  pollfd poll_fd{.fd = kick.fd(), .events = POLLIN, .revents = 0};
  return ::poll(&poll_fd, 1, static_cast<int>(kLost.count())) > 0 && kick.take() > 0;
}

// Spins a little, differently each time, so that the two threads meet in every phase.
void dawdle(std::minstd_rand& random) {
  for (auto spins = random() % 64; spins > 0; --spins) asm volatile("");
}

// As every device does: sleep, then empty the ring, until asked to stop.
void device_thread(Queue& queue, const EventFd& kick, const std::atomic<bool>& stop,
                   std::atomic<bool>& lost) {
  std::minstd_rand random(1);  // NOLINT
  while (!stop) {
    queue.disable_kicks();
    do {
      while (auto chain = queue.pop()) {
        dawdle(random);
        chain->complete(static_cast<uint32_t>(chain->writable_bytes()));
        if (random() % 4 == 0) queue.interrupt_if_needed();
      }
      queue.interrupt_if_needed();
      dawdle(random);
    } while (queue.enable_kicks());
    if (!wait_kick(kick)) {
      if (!stop) lost = true;
      return;
    }
  }
}

class QueueThreads : public testing::TestWithParam<uint64_t> {};

TEST_P(QueueThreads, no_wake_up_is_lost) {
  constexpr uint16_t kSize = 16;
  QueueRig rig(kSize, GetParam());
  const EventFd kick = EventFd::create().value();
  std::atomic<bool> stop{false};
  std::atomic<bool> device_lost{false};
  std::thread device([&] { device_thread(*rig.queue, kick, stop, device_lost); });
  std::minstd_rand random(2);  // NOLINT
  const std::vector<FakeBuffer> buffer{{QueueRig::kFreeStart, 4, true}};
  uint64_t added = 0;
  uint64_t used = 0;
  bool driver_lost = false;
  // Past 2^16, so that the indices wrap under both wishes; then for a while, for the races.
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1000);
  while (!driver_lost && (used < 70'000 || std::chrono::steady_clock::now() < end)) {
    for (auto batch = random() % 3 + 1; batch > 0; --batch) {
      if (!rig.driver.add(buffer)) break;
      ++added;
      dawdle(random);
      if (random() % 2 == 0 && rig.driver.kick_wanted()) kick.signal();
    }
    if (rig.driver.kick_wanted()) kick.signal();
    // Now and then let both sides run dry.
    const uint64_t leave = random() % 4 == 0 ? 0 : random() % kSize;
    rig.driver.disable_interrupts();
    while (added - used > leave) {
      if (!rig.driver.wait_used(rig.interrupt, deadline_in(kLost))) {
        driver_lost = true;
        break;
      }
      ++used;
    }
  }
  while (!driver_lost && used < added) {
    driver_lost = !rig.driver.wait_used(rig.interrupt, deadline_in(kLost)).has_value();
    ++used;
  }
  stop = true;
  kick.signal();
  device.join();
  EXPECT_FALSE(driver_lost) << "no interrupt for a used chain, or no kick seen; " << used
                            << " used";
  EXPECT_FALSE(device_lost) << "the device slept through a kick";
  EXPECT_FALSE(rig.queue->broken()) << rig.queue->broken_reason();
  EXPECT_EQ(rig.counters.chains, added);
}

// Lets two threads begin each round at the same moment.
class Rendezvous {
 public:
  // `round` counts up from 1.
  void meet(uint64_t round) {
    x_arrived.fetch_add(1);
    for (int spins = 0; x_arrived.load() < 2 * round; ++spins)
      if (spins > 10'000) std::this_thread::yield();
  }

 private:
  std::atomic<uint64_t> x_arrived{0};
};

// Each side starts a little later in some rounds, so that every phase of one meets every phase of
// the other.
constexpr uint64_t kPhases = 13;
void wait_phases(uint64_t phases) {
  for (uint64_t spins = 8 * phases; spins > 0; --spins) asm volatile("");
}

constexpr uint64_t kRoundsMin = 20'000;
constexpr uint64_t kCheckEvery = 1024;
constexpr std::chrono::milliseconds kRaceTime{1000};

// Keeps the calling thread on the `which`-th of the processors this process may use, so that two
// threads really run at once; false if there are too few.
bool stay_on_processor(int which) {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return false;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || which-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    return ::sched_setaffinity(0, sizeof one, &one) == 0;
  }
  return false;
}

// Runs driver_side(round) and device_side(round) against each other, many times.
void race(const std::function<bool(uint64_t)>& driver_side,
          const std::function<bool(uint64_t)>& device_side,
          const std::function<void(uint64_t, bool, bool)>& check) {
  cpu_set_t before;
  ASSERT_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "a race needs two processors";
  Rendezvous begin;
  Rendezvous done;
  std::atomic<bool> stop{false};
  bool device_result = false;
  std::thread device([&] {
    EXPECT_TRUE(stay_on_processor(1));
    for (uint64_t round = 1;; ++round) {
      begin.meet(round);
      if (stop) return;
      wait_phases(round % kPhases);
      device_result = device_side(round);
      done.meet(round);
    }
  });
  // After the other thread was made, which would have inherited it.
  EXPECT_TRUE(stay_on_processor(0));
  const auto end = std::chrono::steady_clock::now() + kRaceTime;
  for (uint64_t round = 1;; ++round) {
    if (testing::Test::HasFailure() || (round > kRoundsMin && round % kCheckEvery == 0 &&
                                        std::chrono::steady_clock::now() > end)) {
      stop = true;
      begin.meet(round);
      break;
    }
    begin.meet(round);
    wait_phases(round / kPhases % kPhases);
    const bool driver_result = driver_side(round);
    done.meet(round);
    check(round, driver_result, device_result);
  }
  device.join();
  EXPECT_EQ(::sched_setaffinity(0, sizeof before, &before), 0);
}

TEST_P(QueueThreads, chain_made_available_while_kicks_are_enabled_is_kicked_or_seen) {
  QueueRig rig(16, GetParam());
  const std::vector<FakeBuffer> buffer{{QueueRig::kFreeStart, 4, true}};
  const auto prepare = [&] {
    rig.queue->disable_kicks();
    return rig.driver.prepare(buffer, FakeDriver::Table::kDirect).has_value();
  };
  ASSERT_TRUE(prepare());
  std::optional<Chain> chain;
  race(
      [&](uint64_t) {
        rig.driver.publish();
        return rig.driver.kick_wanted();
      },
      // The end of a device's loop: the ring is found empty, which also brings the driver's index
      // into this core's cache, and makes the load that must not go first a quick one.
      [&](uint64_t) {
        chain = rig.queue->pop();
        return chain.has_value() || rig.queue->enable_kicks();
      },
      [&](uint64_t round, bool kicked, bool seen) {
        EXPECT_TRUE(kicked || seen) << "lost in round " << round;
        if (!chain) chain = rig.queue->pop();
        ASSERT_TRUE(chain.has_value());
        chain.reset();
        ASSERT_TRUE(rig.driver.poll_used().has_value());
        ASSERT_TRUE(prepare());
      });
}

TEST_P(QueueThreads, chain_used_while_interrupts_are_enabled_interrupts_or_is_seen) {
  QueueRig rig(16, GetParam());
  const std::vector<FakeBuffer> buffer{{QueueRig::kFreeStart, 4, true}};
  const auto next_chain = [&] {
    rig.driver.disable_interrupts();
    (void)rig.driver.add(buffer);
    return rig.queue->pop();
  };
  std::optional<Chain> chain = next_chain();
  uint64_t interrupts = 0;
  race([&](uint64_t) { return rig.driver.enable_interrupts(); },
       [&](uint64_t) {
         chain->complete(0);
         rig.queue->interrupt_if_needed();
         return rig.interrupt.count() > interrupts;
       },
       [&](uint64_t round, bool seen, bool interrupted) {
         EXPECT_TRUE(seen || interrupted) << "lost in round " << round;
         ASSERT_TRUE(rig.driver.poll_used().has_value());
         interrupts = rig.interrupt.count();
         chain.reset();
         chain = next_chain();
         ASSERT_TRUE(chain.has_value());
       });
}

INSTANTIATE_TEST_SUITE_P(, QueueThreads, testing::Values(uint64_t{0}, kEventIdx),
                         [](const auto& test) {
                           return test.param == 0 ? "with_flags" : "with_event_idx";
                         });

}  // namespace
}  // namespace lethe
