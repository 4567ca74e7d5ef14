// For commands that wait: signals end the wait, and nothing else.
#pragma once

#include <poll.h>
#include <signal.h>

#include <chrono>
#include <initializer_list>
#include <span>

namespace lethe {

// While it lives, the signals come only while wait() waits; one that came in between ends the next
// wait at once. Ignored signals (nohup) stay ignored. One at a time; the main thread, which is the
// only one.
class WaitSignals {
 public:
  explicit WaitSignals(std::initializer_list<int> signals);
  ~WaitSignals();
  WaitSignals(const WaitSignals&) = delete;
  WaitSignals& operator=(const WaitSignals&) = delete;

  // Until a descriptor is ready, a signal or the time (negative: none); returns the signal, or 0.
  // The descriptors' `revents` are set as by poll(2).
  int wait(std::span<pollfd> descriptors, std::chrono::milliseconds patience);

 private:
  sigset_t x_before{};  // the mask to give back
  sigset_t x_open{};    // the mask of the waits
};

}  // namespace lethe
