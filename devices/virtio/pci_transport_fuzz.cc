// Fuzzes the registers of a virtio PCI function: 8 bytes a step, all invariants after each.
#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "devices/virtio/fake_hostile_guest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static auto* guest = [] {
    if (!lethe::set_log_levels("off")) abort();
    return new lethe::HostileGuest;
  }();
  constexpr size_t kStepsMax = 256;
  const size_t used = std::min(size, kStepsMax * lethe::HostileGuest::kStepBytes);
  // SAFETY: libFuzzer owns `size` bytes at `data` during this call.
  std::span<const uint8_t> input(data, used);
  guest->restore();
  while (!input.empty()) {
    const size_t step = std::min(input.size(), lethe::HostileGuest::kStepBytes);
    guest->step(input.first(step));
    input = input.subspan(step);
    if (const auto broken = guest->check()) {
      fprintf(stderr, "broken: %s\n", broken->c_str());
      abort();
    }
  }
  return 0;
}
