// How devices interrupt the guest. The vmm implements these over KVM (irqfd); tests count calls.
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"

namespace lethe {

// Anything that can be signalled: a queue's interrupt, an edge-triggered line. Any thread; never
// blocks.
class Interrupt {
 public:
  virtual ~Interrupt() = default;
  virtual void signal() = 0;
};

// An MSI message (PCI Local Bus 3.0, 6.8.2): what the function would write, and where.
struct MsiMessage {
  uint64_t address = 0;
  uint32_t data = 0;
  friend bool operator==(const MsiMessage&, const MsiMessage&) = default;
};

// One MSI-X vector's way to the interrupt controller.
class MsiRoute : public Interrupt {
 public:
  // Sets where signal() goes from now on. vCPU threads, one at a time for each function.
  virtual void set_message(const MsiMessage& message) = 0;
};

class MsiController {
 public:
  virtual ~MsiController() = default;
  // A route with no message yet: signals before set_message() are lost. Fails when the hypervisor
  // is out of routes.
  [[nodiscard]] virtual Result<std::unique_ptr<MsiRoute>> make_route() = 0;
};

}  // namespace lethe
