// For tests: all that a PciBus works with, in this process. Counts interrupts, keeps doorbells.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "devices/bus.h"
#include "devices/interrupt.h"
#include "devices/pci/pci_bus.h"
#include "memory/guest_memory.h"

namespace lethe {

// Counts what each MSI message received, as the guest's interrupt controller would.
class FakeMsiController : public MsiController {
 public:
  [[nodiscard]] Result<std::unique_ptr<MsiRoute>> make_route() override;
  [[nodiscard]] uint64_t delivered(const MsiMessage& message) const;
  [[nodiscard]] uint64_t delivered() const;
  [[nodiscard]] uint64_t messages_set() const { return x_messages_set; }
  // How many more routes there are.
  void limit_routes(int routes) { x_routes_left = routes; }

 private:
  struct Route;
  mutable Mutex x_mutex;
  std::map<std::pair<uint64_t, uint32_t>, uint64_t> x_delivered LETHE_GUARDED_BY(x_mutex);
  std::atomic<uint64_t> x_messages_set{0};
  int x_routes_left = 1000;
};

// ioeventfd. Programmer errors in the caller (binding twice, unbinding what is not bound) are
// failures of the test.
class FakeDoorbells : public DoorbellBinder {
 public:
  [[nodiscard]] Result<> bind_doorbell(uint64_t address, const EventFd& event) override;
  void unbind_doorbell(uint64_t address, const EventFd& event) override;
  // Signals what is bound; false if nothing is.
  bool ring(uint64_t address);
  [[nodiscard]] std::vector<uint64_t> bound() const;
  void fail_next(int count) { x_failures = count; }

 private:
  mutable Mutex x_mutex;
  std::map<uint64_t, const EventFd*> x_bound LETHE_GUARDED_BY(x_mutex);
  int x_failures = 0;
};

// Memory slots. Binding over what is bound, or unbinding what is not, fails the test.
class FakeDeviceMemory : public DeviceMemoryBinder {
 public:
  struct Slot {
    uint64_t size = 0;
    uint8_t* host = nullptr;
    bool operator==(const Slot&) const = default;
  };
  [[nodiscard]] Result<> bind_memory(uint64_t address, uint64_t size, uint8_t* host) override;
  void unbind_memory(uint64_t address) override;
  [[nodiscard]] std::map<uint64_t, Slot> bound() const;
  // The host's byte behind the address; null if nothing is bound there.
  [[nodiscard]] uint8_t* find(uint64_t address, size_t size) const;
  void fail_next(int count) { x_failures = count; }

 private:
  mutable Mutex x_mutex;
  std::map<uint64_t, Slot> x_bound LETHE_GUARDED_BY(x_mutex);
  int x_failures = 0;
};

// A machine with 16 MiB of RAM, PCI bus 0 and a 64-bit window.
class FakeMachine {
 public:
  static constexpr uint64_t kMemory = 16 * kMiB;
  static constexpr BusRange kHighWindow{64 * kGiB, 16 * kGiB};

  FakeMachine();

  // The guest's accesses: a store or load of `size` bytes (1 to 8) to physical memory, with
  // doorbells and memory slots in front, as KVM has it.
  void write(uint64_t address, uint64_t value, size_t size);
  [[nodiscard]] uint64_t read(uint64_t address, size_t size) const;
  void out(uint16_t port, uint32_t value, size_t size);
  [[nodiscard]] uint32_t in(uint16_t port, size_t size) const;

  [[nodiscard]] static uint64_t ecam(uint8_t slot, uint64_t reg) {
    return PciBus::kEcamStart + (uint64_t{slot} << 15) + reg;
  }
  void config_write(uint8_t slot, uint64_t reg, uint64_t value, size_t size) {
    write(ecam(slot, reg), value, size);
  }
  [[nodiscard]] uint64_t config_read(uint8_t slot, uint64_t reg, size_t size) const {
    return read(ecam(slot, reg), size);
  }
  // Offset of the function's first capability with this id after `after`; 0 if there is none.
  [[nodiscard]] uint8_t find_capability(uint8_t slot, uint8_t id, uint8_t after = 0) const;

  Bus ports{"ports"};
  Bus mmio{"mmio"};
  FakeMsiController msi;
  FakeDoorbells doorbells;
  FakeDeviceMemory device_memory;
  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<PciBus> pci;
};

}  // namespace lethe
