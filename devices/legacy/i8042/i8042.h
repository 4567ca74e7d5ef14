// The keyboard controller, as far as the reset line: guests that know no other way to reboot write
// 0xFE to its command port.
#pragma once

#include "devices/bus.h"
#include "devices/legacy/machine_control.h"

namespace lethe {

inline constexpr uint16_t kI8042Port = 0x60;  // data; the command and status port is 0x64
inline constexpr uint16_t kI8042Ports = 5;

// Stateless; any thread. There is no keyboard. The status register says "input buffer empty", so
// that code about to reset does not wait, and "output buffer full" for ever, which drivers take for
// an absent controller at once (Linux's i8042_flush gives up after 16 bytes), where an idle
// controller that answers nothing costs them half a second a command.
class I8042 : public BusDevice {
 public:
  explicit I8042(MachineControl& control) : x_control(control) {}
  void bus_read(uint64_t offset, std::span<uint8_t> data) override;
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  MachineControl& x_control;
};

}  // namespace lethe
