// Looking again for a short while before sleeping, where that paid off lately.
#pragma once

#include <chrono>

namespace lethe {

// To sleep and to be woken takes an I/O thread as long as several requests do. With a guest that
// keeps its queue busy there is more soon after the work ran out, with one that waits for each
// answer there is not: what was seen last decides.
//
// Threading: one thread.
class Spinner {
 public:
  explicit Spinner(std::chrono::microseconds time) : x_time(time) {}

  // Before sleeping, and when work begins again, if there was a sleep in between.
  void sleeps() { x_slept_at = Clock::now(); }
  void woke() {
    if (x_slept_at == Clock::time_point{}) return;
    if (Clock::now() - x_slept_at < x_time) x_credit = kCreditMax;
    x_slept_at = {};
  }

  // Calls `look` again and again, while it returns false and the time lasts: true if it found
  // something. At once false where that was in vain lately.
  template <typename Look>
  bool finds(Look&& look) {
    if (x_credit == 0) return false;
    const auto until = Clock::now() + x_time;
    do {
      for (int i = 0; i < kPauses; ++i) __builtin_ia32_pause();
      if (look()) {
        x_credit = kCreditMax;
        return true;
      }
    } while (Clock::now() < until);
    --x_credit;
    return false;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kPauses = 20;  // between two looks: they pull at a cache line of the guest's
  static constexpr int kCreditMax = 16;

  const std::chrono::microseconds x_time;
  Clock::time_point x_slept_at;  // 0: at work
  int x_credit = 0;              // spins in vain before it is given up
};

}  // namespace lethe
