#include "devices/legacy/i8042/i8042.h"

namespace lethe {
namespace {

constexpr uint64_t kCommandOffset = 4;
constexpr uint8_t kStatusOutputFull = 0x01;  // bit 1, input full, stays clear
constexpr uint8_t kCommandPulseReset = 0xfe;

}  // namespace

void I8042::bus_read(uint64_t offset, std::span<uint8_t> data) {
  for (uint8_t& byte : data) byte = offset++ == kCommandOffset ? kStatusOutputFull : 0xff;
}

void I8042::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  for (const uint8_t byte : data) {
    if (offset++ == kCommandOffset && byte == kCommandPulseReset) x_control.guest_reset();
  }
}

}  // namespace lethe
