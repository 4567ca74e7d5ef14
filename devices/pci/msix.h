// MSI-X of one function: the vector table, the pending bits, masks (PCI Local Bus 3.0, 6.8.2).
//
// Threading: signal() and enabled() from any thread; they take no lock and never block. Everything
// else under the function's lock, on vCPU threads.
// How signals and masks meet: vector_state.h.
#pragma once

#include <linux/pci_regs.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/state.h"
#include "devices/interrupt.h"
#include "devices/pci/vector_state.h"

namespace lethe {

class Msix {
 public:
  static constexpr uint16_t kVectorsMax = 128;  // ours; the table could have 2048

  // `vectors`: 1 to kVectorsMax. Fails when the controller has no route left.
  [[nodiscard]] static Result<std::unique_ptr<Msix>> create(MsiController& controller,
                                                            uint16_t vectors);

  [[nodiscard]] uint16_t vectors() const { return static_cast<uint16_t>(x_vectors.size()); }
  [[nodiscard]] uint32_t table_bytes() const { return vectors() * PCI_MSIX_ENTRY_SIZE; }
  [[nodiscard]] uint32_t pba_bytes() const { return (vectors() + 63U) / 64 * 8; }

  // The message control register was written: PCI_MSIX_FLAGS_ENABLE and _MASKALL count.
  void set_control(uint16_t control);

  // Guest accesses within the table, at any offset, of 1 to 8 bytes. Writes are taken only as whole
  // aligned dwords or qwords, as the specification demands; false: refused, nothing changed.
  void read_table(uint64_t offset, std::span<uint8_t> data) const;
  [[nodiscard]] bool write_table(uint64_t offset, std::span<const uint8_t> data);
  // The pending bit array: read only.
  void read_pba(uint64_t offset, std::span<uint8_t> data) const;

  // Snapshots. restore() sends every vector that is open once more: a message that was on its way
  // into a local APIC when that was saved is made good so, and drivers ignore one too many.
  void save(StateWriter& to) const;
  void restore(StateReader& from, uint16_t control);

  // Delivers the vector, or keeps it pending while it is masked. Nothing happens if MSI-X is off or
  // there is no such vector (so VIRTIO_MSI_NO_VECTOR may be passed).
  void signal(uint16_t vector);
  [[nodiscard]] bool enabled() const { return x_enabled.load(std::memory_order_acquire); }

 private:
  struct Vector {
    std::unique_ptr<MsiRoute> route;
    std::array<uint32_t, 4> entry{};  // as PCI_MSIX_ENTRY_*; function's lock
    MsiMessage sent_to;               // what the route has been told; function's lock
    VectorState<> state;
  };

  explicit Msix(uint16_t vectors) : x_vectors(vectors) {}
  void update(Vector& vector);

  std::vector<Vector> x_vectors;
  std::atomic<bool> x_enabled{false};
  bool x_mask_all = false;
};

}  // namespace lethe
