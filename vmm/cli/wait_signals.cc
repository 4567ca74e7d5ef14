#include "vmm/cli/wait_signals.h"

namespace lethe {
namespace {

// Set only while ppoll() waits; the last one is kept.
volatile sig_atomic_t caught = 0;

}  // namespace

WaitSignals::WaitSignals(std::initializer_list<int> signals) {
  caught = 0;
  sigset_t ours;
  ::sigemptyset(&ours);
  (void)::sigprocmask(SIG_BLOCK, nullptr, &x_before);
  x_open = x_before;
  for (const int signal : signals) {
    struct sigaction action{};
    (void)::sigaction(signal, nullptr, &action);
    if (action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_handler = [](int number) { caught = number; };
    (void)::sigaction(signal, &action, nullptr);
    ::sigaddset(&ours, signal);
    ::sigdelset(&x_open, signal);
  }
  (void)::sigprocmask(SIG_BLOCK, &ours, nullptr);
}

WaitSignals::~WaitSignals() { (void)::sigprocmask(SIG_SETMASK, &x_before, nullptr); }

int WaitSignals::wait(std::span<pollfd> descriptors, std::chrono::milliseconds patience) {
  caught = 0;
  const auto ms = patience.count();
  const timespec time{.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1'000'000};
  for (pollfd& each : descriptors) each.revents = 0;
  (void)::ppoll(descriptors.data(), descriptors.size(), ms < 0 ? nullptr : &time, &x_open);
  return caught;
}

}  // namespace lethe
