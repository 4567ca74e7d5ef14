// The I/O APIC (Intel 82093AA data sheet): 24 pins, each routed to a local APIC by its redirection
// entry. KVM keeps the local APICs; this stands outside, since a VM with KVM's own I/O APIC and
// PICs takes three times as long to make and to end (docs/adr/0007).
//
// A pin is an MSI route: its entry becomes the message, and a device's signal goes through the
// route's irqfd straight to KVM. All of the machine's lines are edges; an entry that asks for level
// triggering is delivered as an edge too, and no EOI is waited for.
#pragma once

#include <array>
#include <memory>

#include "base/mutex.h"
#include "base/state.h"
#include "devices/bus.h"
#include "devices/interrupt.h"
#include "devices/pci/vector_state.h"

namespace lethe {

inline constexpr uint64_t kIoapicAddress = 0xFEC0'0000;
inline constexpr uint64_t kIoapicSize = 0x20;  // bytes: the index and the data register
inline constexpr unsigned kIoapicPins = 24;

// Threading: registers on vCPU threads, under the lock; a line's signal() from any thread without
// it: a signal while the pin is masked is kept and delivered when it is unmasked (VectorState).
// Lines must not outlive this.
class Ioapic final : public BusDevice {
 public:
  explicit Ioapic(MsiController& msi) : x_msi(msi) {}

  // The pin's line, for a device; once a pin, before the vCPUs run. Fails as make_route() does.
  [[nodiscard]] Result<std::unique_ptr<Interrupt>> make_line(unsigned gsi);

  // Snapshots, while no vCPU runs. restore() is for a device as made; the file may be anybody's.
  // Lines whose device is up signal again by themselves.
  void save(StateWriter& to) LETHE_EXCLUDES(x_mutex);
  void restore(StateReader& from) LETHE_EXCLUDES(x_mutex);

  void bus_read(uint64_t offset, std::span<uint8_t> data) override;
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  class Line;
  struct Pin {
    uint64_t entry = 1 << 16;         // masked, as after a reset; the lock
    std::unique_ptr<MsiRoute> route;  // none if no device has the pin; fixed before the vCPUs run
    VectorState<> state;
  };
  [[nodiscard]] uint32_t read_register() const LETHE_REQUIRES(x_mutex);
  void write_register(uint32_t value) LETHE_REQUIRES(x_mutex);
  void update(Pin& pin) LETHE_REQUIRES(x_mutex);

  MsiController& x_msi;
  Mutex x_mutex;
  uint8_t x_index LETHE_GUARDED_BY(x_mutex) = 0;
  uint8_t x_id LETHE_GUARDED_BY(x_mutex) = 0;
  std::array<Pin, kIoapicPins> x_pins;
};

}  // namespace lethe
