// The fixed hardware of a hardware-reduced ACPI machine (ACPI 6.4, 4.8.3.7 and 4.8.3.6): sleep
// control and status, the power button's event register, and the reset register.
#pragma once

#include <atomic>

#include "base/state.h"
#include "devices/bus.h"
#include "devices/interrupt.h"
#include "devices/legacy/machine_control.h"

namespace lethe {

inline constexpr uint16_t kAcpiPowerPort = 0x600;
inline constexpr uint16_t kAcpiPowerPorts = 5;
inline constexpr uint16_t kAcpiSleepControlPort = 0x600;  // 8 bit, as all of these
inline constexpr uint16_t kAcpiSleepStatusPort = 0x601;
inline constexpr uint16_t kAcpiEventPort = 0x604;
inline constexpr uint8_t kAcpiEventPowerButton = 0x01;  // bit 0 of the event register
inline constexpr uint8_t kAcpiS5SleepType = 5;          // SLP_TYP for the DSDT's \_S5
inline constexpr uint16_t kResetPort = 0xcf9;
inline constexpr uint8_t kResetValue = 0x06;  // for the FADT's RESET_VALUE

// Any thread; no locks. The DSDT's generic event device (ACPI0013) reads the event register when
// its interrupt fires and notifies the power button if bit 0 was set; reading clears it.
class AcpiPower : public BusDevice {
 public:
  // `event_interrupt`: the generic event device's GSI, edge triggered.
  AcpiPower(MachineControl& control, Interrupt& event_interrupt)
      : x_control(control), x_event_interrupt(event_interrupt) {}

  // The host presses the power button. Signals each time, also when an earlier press has not been
  // read yet: should the guest have lost that edge, this one heals it.
  void power_button();

  // Snapshots, while no vCPU runs. restore() is for a device as made; the file may be anybody's.
  void save(StateWriter& to);
  void restore(StateReader& from);

  void bus_read(uint64_t offset, std::span<uint8_t> data) override;
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  MachineControl& x_control;
  Interrupt& x_event_interrupt;
  std::atomic<uint8_t> x_events{0};
};

// The reset register alone: one 8-bit port at kResetPort. It lies within PCI's 32-bit 0xCF8, so the
// device that owns those ports hands one-byte accesses at 0xCF9 on to this one. 0x06 and 0x0E (full
// reset) reset the machine; Linux writes 0x02 first, which does nothing. Stateless; any thread.
class ResetRegister : public BusDevice {
 public:
  explicit ResetRegister(MachineControl& control) : x_control(control) {}
  void bus_read(uint64_t offset, std::span<uint8_t> data) override;
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  MachineControl& x_control;
};

}  // namespace lethe
