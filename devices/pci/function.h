// A PCI function behind PciBus: configuration space, BARs that follow what the guest writes, MSI-X.
// Devices derive from it and say what is behind their BARs.
//
// Threading: accesses come from vCPU threads, several at once; each takes x_mutex, the function's
// one lock, and all hooks run under it. A hook may wait for a device's I/O thread (a virtio reset
// does), so nothing that an I/O thread calls may take x_mutex: interrupts go through
// Msix::signal().
//
// Not modelled: bus mastering off does not stop DMA or MSI, INTx does not exist.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "base/mutex.h"
#include "base/state.h"
#include "devices/bus.h"
#include "devices/interrupt.h"
#include "devices/pci/config_space.h"
#include "devices/pci/msix.h"
#include "memory/guest_memory.h"

namespace lethe {

// Where BARs may lie. A BAR that the guest moves elsewhere is not mapped.
struct PciWindows {
  BusRange low{0xC000'0000, 0x2000'0000};
  BusRange high{};  // above RAM, for 64-bit BARs; none if its size is 0
};

// What functions work with. Everything must outlive the PciBus.
struct PciEnvironment {
  Bus& mmio;
  MsiController& msi;
  DoorbellBinder& doorbells;
  DeviceMemoryBinder& device_memory;
  const GuestMemory& memory;
  PciWindows windows{};
};

struct PciCounters {
  std::atomic<uint64_t> bars_refused{0};      // BARs enabled at an address that can't be mapped
  std::atomic<uint64_t> accesses_refused{0};  // accesses of a size or place that is not allowed
};

class PciFunction {
 public:
  // `name` is for logs: "block0".
  PciFunction(const PciEnvironment& environment, const PciIdentity& identity, std::string name);
  virtual ~PciFunction();
  PciFunction(const PciFunction&) = delete;
  PciFunction& operator=(const PciFunction&) = delete;

  // Configuration accesses; `offset` + size is at most PciConfigSpace::kWindow.
  void config_read(uint16_t offset, std::span<uint8_t> data) LETHE_EXCLUDES(x_mutex);
  // True if a BAR left its place: others may fit there now (see retry_bars()).
  bool config_write(uint16_t offset, std::span<const uint8_t> data) LETHE_EXCLUDES(x_mutex);

  // Maps BARs that are enabled but could not be mapped before.
  void retry_bars() LETHE_EXCLUDES(x_mutex);

  // For PciBus, before the vCPUs run: the place of a BAR; then memory decode and bus mastering on.
  [[nodiscard]] uint64_t bar_size(unsigned bar) const LETHE_EXCLUDES(x_mutex);
  [[nodiscard]] PciBarKind bar_kind(unsigned bar) const LETHE_EXCLUDES(x_mutex);
  [[nodiscard]] bool bar_prefetchable(unsigned bar) const LETHE_EXCLUDES(x_mutex);
  void set_bar_address(unsigned bar, uint64_t address) LETHE_EXCLUDES(x_mutex);
  void enable() LETHE_EXCLUDES(x_mutex);
  // Where the BAR is mapped now, if it is.
  [[nodiscard]] std::optional<uint64_t> bar_mapped_at(unsigned bar) const LETHE_EXCLUDES(x_mutex);

  // Snapshots (docs/snapshot.md), on the main thread while no vCPU runs: freeze() every function,
  // save() each, thaw() before vCPUs run again; freeze() and save() may come again before that.
  // Between freeze() and thaw() the function's device touches no guest memory and begins nothing
  // that the driver has asked for. restore() gets what save() wrote, in a function made from the
  // same config of which no vCPU has seen anything yet; afterwards it is at work, not frozen. The
  // file may be anybody's. Errors: from.check().
  virtual void freeze() LETHE_EXCLUDES(x_mutex) {}
  virtual void thaw() LETHE_EXCLUDES(x_mutex) {}
  // Frozen: why its state can't be saved now, if that is so, in one line for the user.
  [[nodiscard]] virtual Result<> can_save() LETHE_EXCLUDES(x_mutex) { return {}; }
  void save(StateWriter& to) LETHE_EXCLUDES(x_mutex);
  [[nodiscard]] Result<> restore(StateReader& from) LETHE_EXCLUDES(x_mutex);

  [[nodiscard]] const std::string& name() const { return x_name; }
  [[nodiscard]] const PciCounters& pci_counters() const { return x_counters; }

 protected:
  // For the most derived destructor, while its hooks still exist: unmaps every BAR.
  void unmap_bars() LETHE_EXCLUDES(x_mutex);

  // Adds the MSI-X capability; table and pending bits lie in `bar` (page aligned offsets, so that
  // they share no page with other registers: 6.8.2). Accesses there do not reach bar_read/write().
  [[nodiscard]] Result<> add_msix(uint16_t vectors, unsigned bar, uint32_t table_offset,
                                  uint32_t pba_offset) LETHE_REQUIRES(x_mutex);

  // An access to a BAR, as the guest's own: 1 to 8 bytes, within the BAR.
  void access_read(unsigned bar, uint64_t offset, std::span<uint8_t> data) LETHE_REQUIRES(x_mutex);
  void access_write(unsigned bar, uint64_t offset, std::span<const uint8_t> data)
      LETHE_REQUIRES(x_mutex);

  // Hooks. What lies behind a BAR; MSI-X excepted.
  virtual void bar_read(unsigned bar, uint64_t offset, std::span<uint8_t> data)
      LETHE_REQUIRES(x_mutex);
  virtual void bar_write(unsigned bar, uint64_t offset, std::span<const uint8_t> data)
      LETHE_REQUIRES(x_mutex);
  // The BAR is mapped at `address` now; it is about to leave it.
  virtual void bar_mapped(unsigned /*bar*/, uint64_t /*address*/) LETHE_REQUIRES(x_mutex) {}
  virtual void bar_unmapping(unsigned /*bar*/) LETHE_REQUIRES(x_mutex) {}
  // The guest is about to read, or has written, these bytes of configuration space.
  virtual void config_reading(uint16_t /*offset*/, size_t /*size*/) LETHE_REQUIRES(x_mutex) {}
  virtual void config_written(uint16_t /*offset*/, size_t /*size*/) LETHE_REQUIRES(x_mutex) {}

  // What save() and restore() do for all that is not configuration space, BARs and MSI-X. When
  // restore_device() is called those are as they were: BARs mapped, vectors routed and unmasked.
  virtual void save_device(StateWriter& /*to*/) LETHE_REQUIRES(x_mutex) {}
  virtual void restore_device(StateReader& /*from*/) LETHE_REQUIRES(x_mutex) {}

  [[nodiscard]] std::optional<uint64_t> mapped_at(unsigned bar) const LETHE_REQUIRES(x_mutex) {
    return x_bars[bar].mapped_at;
  }
  void refuse_access() { x_counters.accesses_refused.fetch_add(1, std::memory_order_relaxed); }

  const PciEnvironment x_environment;
  mutable Mutex x_mutex;
  PciConfigSpace x_config LETHE_GUARDED_BY(x_mutex);
  // Set once by add_msix(), before anything runs; it may be used without the lock where Msix says.
  std::unique_ptr<Msix> x_msix;

 private:
  struct Bar final : BusDevice {
    PciFunction* function = nullptr;
    unsigned index = 0;
    std::optional<uint64_t> mapped_at;  // function's lock
    void bus_read(uint64_t offset, std::span<uint8_t> data) override;
    void bus_write(uint64_t offset, std::span<const uint8_t> data) override;
  };

  bool update_bars() LETHE_REQUIRES(x_mutex);
  void unmap_bar(Bar& bar) LETHE_REQUIRES(x_mutex);
  // True if it is mapped now.
  bool map_bar(Bar& bar) LETHE_REQUIRES(x_mutex);
  [[nodiscard]] bool placeable(uint64_t address, uint64_t size) const;
  [[nodiscard]] bool in_msix_table(unsigned bar, uint64_t offset) const;
  [[nodiscard]] bool in_msix_pba(unsigned bar, uint64_t offset) const;

  const std::string x_name;
  PciCounters x_counters;
  std::array<Bar, PciConfigSpace::kBars> x_bars LETHE_GUARDED_BY(x_mutex);
  unsigned x_msix_bar = 0;
  uint32_t x_msix_table = 0;
  uint32_t x_msix_pba = 0;
  uint16_t x_msix_control = 0;  // offset of message control in configuration space
};

}  // namespace lethe
