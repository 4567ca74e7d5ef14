// Prints how fast this host's time stamp counter runs, in kHz: QEMU's emulation hands it to L1 as
// it is, and a kernel that is told need not measure it (guest-tests/lab/README.md). The median of
// seven measurements, so that an interruption does not count.
#include <time.h>
#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>

namespace {

uint64_t now_ns() {
  timespec time{};
  (void)clock_gettime(CLOCK_MONOTONIC_RAW, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

}  // namespace

int main() {
  constexpr uint64_t kSpanNs = 10'000'000;
  std::array<uint64_t, 7> khz{};
  for (uint64_t& measured : khz) {
    const uint64_t begin = now_ns();
    const uint64_t first = __rdtsc();
    uint64_t end = begin;
    while (end - begin < kSpanNs) end = now_ns();
    measured = (__rdtsc() - first) * 1'000'000 / (end - begin);
  }
  std::ranges::nth_element(khz, khz.begin() + khz.size() / 2);
  std::printf("%llu\n", static_cast<unsigned long long>(khz[khz.size() / 2]));
  return 0;
}
