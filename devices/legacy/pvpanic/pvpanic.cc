#include "devices/legacy/pvpanic/pvpanic.h"

#include <misc/pvpanic.h>

#include <algorithm>

#include "base/log.h"

namespace lethe {

void Pvpanic::bus_read(uint64_t offset, std::span<uint8_t> data) {
  std::ranges::fill(data, uint8_t{0});
  if (offset == 0 && !data.empty()) data[0] = PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
}

void Pvpanic::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  if (offset != 0 || data.empty()) return;
  if ((data[0] & PVPANIC_PANICKED) != 0) {
    x_control.guest_panicked();
  } else if ((data[0] & PVPANIC_CRASH_LOADED) != 0) {
    LETHE_LOG_LIMITED(LogModule::kLegacy, "guest panicked and runs its crash kernel");
  }
}

}  // namespace lethe
