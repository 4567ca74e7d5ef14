#include "devices/legacy/debug_exit/debug_exit.h"

#include <algorithm>
#include <cstring>

namespace lethe {

void DebugExit::bus_read(uint64_t /*offset*/, std::span<uint8_t> data) {
  std::ranges::fill(data, uint8_t{0xff});
}

void DebugExit::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  if (offset != 0 || (data.size() != 1 && data.size() != 2 && data.size() != 4)) return;
  uint32_t value = 0;
  std::memcpy(&value, data.data(), data.size());  // little endian, as the guest
  x_control.guest_debug_exit(value);
}

}  // namespace lethe
