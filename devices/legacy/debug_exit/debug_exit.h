// debug-exit: a port that ends the VM with the value written to it, for test guests.
#pragma once

#include "devices/bus.h"
#include "devices/legacy/machine_control.h"

namespace lethe {

inline constexpr uint16_t kDebugExitPort = 0xf4;
inline constexpr uint16_t kDebugExitPorts = 4;

// Stateless; any thread. A write of 8, 16 or 32 bits at the first port counts; others are ignored.
class DebugExit : public BusDevice {
 public:
  explicit DebugExit(MachineControl& control) : x_control(control) {}
  void bus_read(uint64_t offset, std::span<uint8_t> data) override;
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  MachineControl& x_control;
};

}  // namespace lethe
