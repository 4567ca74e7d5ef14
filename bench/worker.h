// For benchmarks whose bare peer has a thread of its own, as the device has its I/O thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <utility>

namespace lethe {

// A thread that is there before part_threads() puts it on its processor. Used by one thread.
class Worker {
 public:
  Worker()
      : x_thread([this] {
          for (;;) {
            x_state.wait(kIdle);
            if (x_state.load() == kEnd) return;
            x_work();
            x_state.store(kIdle);
          }
        }) {}
  ~Worker() {
    wait();
    x_state.store(kEnd);
    x_state.notify_one();
    x_thread.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Has `work` done on the thread; not before the last one is done.
  void start(std::function<void()> work) {
    wait();
    x_work = std::move(work);
    x_state.store(kBusy);
    x_state.notify_one();
  }
  // Until it is done; ends the process if it is not in time. Does not sleep, so that the waking up
  // is in nobody's time.
  void wait() const {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (x_state.load() == kBusy) {
      if (std::chrono::steady_clock::now() > deadline) {
        std::fprintf(stderr, "the bare loop does not go on\n");
        std::_Exit(1);
      }
      __builtin_ia32_pause();
    }
  }

 private:
  enum State : int { kIdle, kBusy, kEnd };
  static constexpr std::chrono::seconds kPatience{20};
  std::function<void()> x_work;  // changed only while idle: x_state's store hands it over
  std::atomic<int> x_state{kIdle};
  std::thread x_thread;
};

}  // namespace lethe
