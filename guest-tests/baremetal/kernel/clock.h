// Time from the TSC. Its rate is asked of KVM; where nobody tells, it is taken as 2.5 GHz, which is
// good enough for what it serves: deadlines that turn a hang into a failed check.
#pragma once

#include <stdint.h>

#include "kernel/cpu.h"

namespace kernel {

void clock_init();
uint64_t tsc_hz();
// Since boot, microseconds.
uint64_t now_us();

class Deadline {
 public:
  explicit Deadline(uint64_t ms);
  bool passed() const { return read_tsc() >= end_; }

 private:
  uint64_t end_;
};

// For what must happen: generous, since hosts under test are slow and shared.
inline constexpr uint64_t kSoonMs = 20000;

// Polls until `ready()` or the time is up; says which.
template <typename F>
bool wait_until(F ready, uint64_t ms = kSoonMs) {
  const Deadline deadline(ms);
  while (!ready()) {
    if (deadline.passed()) return ready();
    pause();
  }
  return true;
}

}  // namespace kernel

#define CHECK_SOON(condition) CHECK(::kernel::wait_until([&] { return condition; }))
