// Exhaustive interleaving of small cases: runs the real code of a few threads in every order of
// their steps.
//
// A step is what a thread does between two calls of interleave_point(). Only one thread runs at a
// time; at each point it hands over to whichever thread the schedule names, and
// explore_interleavings() goes through all schedules, depth first. A point must not be passed with
// a lock held that another thread takes.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace lethe {

class Interleaver {
 public:
  using Threads = std::vector<std::function<void()>>;

  // Runs `threads` once, in the order that the schedule names; what it leaves open is recorded.
  void run(const Threads& threads) {
    x_depth = 0;
    x_finished.assign(threads.size(), false);
    x_turn = choose();
    std::vector<std::thread> running;
    for (size_t i = 0; i < threads.size(); ++i)
      running.emplace_back([this, i, &threads] {
        slot() = {this, i};
        wait_for_turn(i);
        threads[i]();
        std::lock_guard lock(x_mutex);
        x_finished[i] = true;
        hand_over();
      });
    for (auto& thread : running) thread.join();
  }

  // The next schedule; false if all have run.
  bool advance() {
    while (!x_schedule.empty() && x_schedule.back().chosen + 1 == x_schedule.back().choices)
      x_schedule.pop_back();
    if (x_schedule.empty()) return false;
    ++x_schedule.back().chosen;
    return true;
  }

  static void point() {
    const Slot here = slot();
    if (here.interleaver == nullptr) return;  // not under an Interleaver
    {
      std::lock_guard lock(here.interleaver->x_mutex);
      here.interleaver->hand_over();
    }
    here.interleaver->wait_for_turn(here.index);
  }

 private:
  struct Slot {
    Interleaver* interleaver = nullptr;
    size_t index = 0;
  };
  static Slot& slot() {
    thread_local Slot here;
    return here;
  }

  static constexpr size_t kNobody = SIZE_MAX;

  // The thread of the next step.
  size_t choose() {
    std::vector<size_t> ready;
    for (size_t i = 0; i < x_finished.size(); ++i)
      if (!x_finished[i]) ready.push_back(i);
    if (ready.empty()) return kNobody;
    if (x_depth == x_schedule.size()) x_schedule.push_back({0, ready.size()});
    const size_t chosen = x_schedule[x_depth++].chosen;
    return ready.at(chosen);  // throws if the threads are not deterministic
  }
  void hand_over() {
    x_turn = choose();
    x_changed.notify_all();
  }
  void wait_for_turn(size_t index) {
    std::unique_lock lock(x_mutex);
    x_changed.wait(lock, [&] { return x_turn == index; });
  }

  struct Choice {
    size_t chosen, choices;
  };
  std::mutex x_mutex;
  std::condition_variable x_changed;
  size_t x_turn = kNobody;
  std::vector<bool> x_finished;
  std::vector<Choice> x_schedule;
  size_t x_depth = 0;
};

inline void interleave_point() { Interleaver::point(); }

// `make_case` builds a fresh case and runs it: it calls interleaver.run() and checks what came of
// it. Returns how many interleavings there were.
inline uint64_t explore_interleavings(const std::function<void(Interleaver&)>& make_case) {
  Interleaver interleaver;
  uint64_t runs = 0;
  do {
    make_case(interleaver);
    ++runs;
  } while (!testing::Test::HasFailure() && interleaver.advance());
  return runs;
}

}  // namespace lethe
