// What a guest can ask of its machine through the legacy devices.
#pragma once

#include <cstdint>

namespace lethe {

// Called on vCPU threads, several at once: an implementation notes the request, wakes whoever acts
// on it and returns at once. The vCPU goes on running until it is stopped, so a request may come
// more than once; the first one counts.
class MachineControl {
 public:
  virtual ~MachineControl() = default;
  virtual void guest_power_off() = 0;                 // ACPI S5
  virtual void guest_reset() = 0;                     // reset register, keyboard controller
  virtual void guest_panicked() = 0;                  // pvpanic, PVPANIC_PANICKED
  virtual void guest_debug_exit(uint32_t value) = 0;  // debug-exit port, the value as written
};

}  // namespace lethe
