// pvpanic: the port by which a guest's kernel says that it panicked (ACPI device QEMU0001; the
// events are in linux/misc/pvpanic.h).
#pragma once

#include "devices/bus.h"
#include "devices/legacy/machine_control.h"

namespace lethe {

inline constexpr uint16_t kPvpanicPort = 0x505;

// Stateless; any thread. Reading gives the events on offer. PVPANIC_PANICKED is handed on;
// PVPANIC_CRASH_LOADED (a crash kernel takes over and will end the guest itself) is only logged.
class Pvpanic : public BusDevice {
 public:
  explicit Pvpanic(MachineControl& control) : x_control(control) {}
  void bus_read(uint64_t offset, std::span<uint8_t> data) override;
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  MachineControl& x_control;
};

}  // namespace lethe
