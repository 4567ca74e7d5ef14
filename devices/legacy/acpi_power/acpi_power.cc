#include "devices/legacy/acpi_power/acpi_power.h"

#include <algorithm>

#include "base/log.h"

namespace lethe {
namespace {

constexpr uint64_t kSleepControl = kAcpiSleepControlPort - kAcpiPowerPort;
constexpr uint64_t kEvent = kAcpiEventPort - kAcpiPowerPort;
constexpr uint8_t kSleepEnable = 1 << 5;
constexpr int kSleepTypeShift = 2;
constexpr uint8_t kSleepTypeMask = 7;
constexpr uint8_t kHardResetBits = 0x06;  // RST_CPU and SYS_RST: a transition that resets
constexpr uint8_t kFullResetBit = 0x08;

}  // namespace

void AcpiPower::power_button() {
  x_events.fetch_or(kAcpiEventPowerButton, std::memory_order_release);
  x_event_interrupt.signal();
}

void AcpiPower::bus_read(uint64_t offset, std::span<uint8_t> data) {
  for (uint8_t& byte : data) {
    // Sleep control reads as 0 (ACPI: software ignores it); sleep status too: nothing ever wakes.
    byte = offset++ == kEvent ? x_events.exchange(0, std::memory_order_acq_rel) : uint8_t{0};
  }
}

void AcpiPower::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  for (const uint8_t byte : data) {
    if (offset++ != kSleepControl || (byte & kSleepEnable) == 0) continue;
    const unsigned type = (byte >> kSleepTypeShift) & kSleepTypeMask;
    if (type == kAcpiS5SleepType) {
      x_control.guest_power_off();
    } else {
      LETHE_LOG_LIMITED(LogModule::kLegacy, "guest asked for sleep type {}, which it has not",
                        type);
    }
  }
}

void ResetRegister::bus_read(uint64_t /*offset*/, std::span<uint8_t> data) {
  std::ranges::fill(data, uint8_t{0});
}

void ResetRegister::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  if (offset != 0 || data.size() != 1) return;
  if ((data[0] & ~kFullResetBit) == kHardResetBits) x_control.guest_reset();
}

void AcpiPower::save(StateWriter& to) {
  to.begin_section("acpi-power", 1);
  to.number(x_events.load(std::memory_order_acquire));
  to.end_section();
}

void AcpiPower::restore(StateReader& from) {
  from.begin_section("acpi-power", 1);
  const auto events = from.number<uint8_t>();
  from.end_section();
  if (from.ok() && (events & kAcpiEventPowerButton) != 0) power_button();
}

}  // namespace lethe
