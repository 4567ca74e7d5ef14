// PCI bus 0: configuration access through ECAM and through ports 0xCF8 to 0xCFF, slots, and the
// places of BARs. There is no firmware: the VMM places BARs and switches decoding on.
//
//   PciBus pci(ports, {.mmio = mmio, .msi = msi, .doorbells = doorbells,
//                      .device_memory = device_memory, .memory = memory,
//                      .windows = {.high = {ram_end_rounded, 64 * kGiB}}});
//   pci.set_reset_control(reset_register);           // port 0xCF9, byte accesses
//   LETHE_TRY(pci.attach());                         // ECAM and the ports on the buses
//   LETHE_TRY_ASSIGN(auto block, VirtioPciTransport::create(pci.environment(), std::move(device)));
//   LETHE_TRY_ASSIGN(uint8_t slot, pci.add_device(std::move(block)));   // 1: function 00:01.0
//
// Threading: build it (all of the above) before the vCPUs run; after that the slots do not change
// and accesses come from any vCPU thread. Destroy it after they have stopped, before the buses, the
// MsiController, the binders and the GuestMemory.
#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "devices/bus.h"
#include "devices/pci/function.h"

namespace lethe {

class PciBus {
 public:
  static constexpr uint64_t kEcamStart = 0xE000'0000;
  static constexpr uint64_t kEcamSize = 0x10'0000;  // one bus: 32 slots of 8 functions of 4 KiB
  static constexpr uint16_t kPortsStart = 0xCF8;
  static constexpr uint16_t kResetControl = 0xCF9;
  static constexpr unsigned kSlots = 32;

  // Puts the host bridge at 00:00.0. `ports` must outlive this, as must what `environment` names.
  PciBus(Bus& ports, const PciEnvironment& environment);
  ~PciBus();
  PciBus(const PciBus&) = delete;
  PciBus& operator=(const PciBus&) = delete;

  // Registers ECAM and the configuration ports. Fails when something else is there.
  [[nodiscard]] Result<> attach();

  // Port 0xCF9 lies within the configuration address register, but a byte access to it is the reset
  // control register, as in all chipsets of PCs. Such accesses go to `device` as offset 0; without
  // one they read all ones. `device` must outlive this.
  void set_reset_control(BusDevice& device) { x_reset_control = &device; }

  // Places the function's BARs, switches memory decode and bus mastering on, and returns its slot:
  // 1 for the first one, up to 31. Fails when slots or windows are used up.
  [[nodiscard]] Result<uint8_t> add_device(std::unique_ptr<PciFunction> function);

  // Snapshots, on the main thread while no vCPU runs: freeze(), save(), thaw() as in PciFunction,
  // for all of them in the order of their slots. restore(): a bus with the same functions.
  void freeze();
  [[nodiscard]] Result<> can_save();
  void save(StateWriter& to);
  void thaw();
  [[nodiscard]] Result<> restore(StateReader& from);

  // Nothing if the slot is empty.
  [[nodiscard]] PciFunction* function(uint8_t slot) { return x_functions[slot].get(); }
  [[nodiscard]] const PciEnvironment& environment() const { return x_environment; }
  // Configuration accesses that reached no function, or crossed the end of one's space.
  [[nodiscard]] uint64_t unclaimed() const { return x_unclaimed.load(std::memory_order_relaxed); }

 private:
  struct Ecam final : BusDevice {
    explicit Ecam(PciBus& owner) : bus(owner) {}
    void bus_read(uint64_t offset, std::span<uint8_t> data) override;
    void bus_write(uint64_t offset, std::span<const uint8_t> data) override;
    PciBus& bus;
  };
  struct Ports final : BusDevice {
    explicit Ports(PciBus& owner) : bus(owner) {}
    void bus_read(uint64_t offset, std::span<uint8_t> data) override;
    void bus_write(uint64_t offset, std::span<const uint8_t> data) override;
    // The ECAM offset that the address register and the offset in the data port name.
    [[nodiscard]] std::optional<uint64_t> target(uint64_t port_offset) const;
    PciBus& bus;
    // PCI Local Bus 3.0, 3.2.2.3.2. One for all vCPUs: they take turns by a lock of the guest's.
    std::atomic<uint32_t> address{0};
  };

  // `offset` as in ECAM: slot << 15 | function << 12 | register.
  void config_read(uint64_t offset, std::span<uint8_t> data);
  void config_write(uint64_t offset, std::span<const uint8_t> data);
  [[nodiscard]] PciFunction* target(uint64_t offset, size_t size);
  [[nodiscard]] Result<> place_bars(PciFunction& function);
  [[nodiscard]] std::optional<uint64_t> allocate(uint64_t size, PciBarKind kind, bool prefetchable);

  Bus& x_ports_bus;
  const PciEnvironment x_environment;
  Ecam x_ecam{*this};
  Ports x_ports{*this};
  bool x_ecam_attached = false;
  bool x_ports_attached = false;
  BusDevice* x_reset_control = nullptr;
  uint64_t x_low_used = 0;  // bytes of each window given away, from its start
  uint64_t x_high_used = 0;
  std::atomic<uint64_t> x_unclaimed{0};
  std::array<std::unique_ptr<PciFunction>, kSlots> x_functions;
};

}  // namespace lethe
