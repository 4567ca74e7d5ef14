// Port and memory-mapped I/O: address ranges, the devices behind them, and dispatch from vCPU
// threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/event_fd.h"
#include "base/rcu_cell.h"
#include "base/result.h"

namespace lethe {

// A device's registers. Calls come from any vCPU thread, several at once: a device that has state
// locks. `offset` is relative to the range's start; 1 to 8 bytes, within the range.
class BusDevice {
 public:
  virtual ~BusDevice() = default;
  virtual void bus_read(uint64_t offset, std::span<uint8_t> data) = 0;
  virtual void bus_write(uint64_t offset, std::span<const uint8_t> data) = 0;
};

struct BusRange {
  uint64_t start = 0;
  uint64_t size = 0;
};

// One address space: port I/O (16 bit) or memory-mapped I/O (64 bit). Devices must outlive it.
class Bus {
 public:
  explicit Bus(const char* name);

  // Fails when the range is empty, wraps, or overlaps another one (the error names both). Any
  // thread that holds no RCU guard.
  [[nodiscard]] Result<> add(BusRange range, BusDevice& device);
  // Ends dispatch to the range that starts at `start`. A call that is in flight on another vCPU may
  // still reach the device.
  void remove(uint64_t start);

  // vCPU threads. An access that no device takes, or that crosses a range's end, reads all ones
  // and writes nothing, and is counted.
  void read(uint64_t address, std::span<uint8_t> data) const;
  void write(uint64_t address, std::span<const uint8_t> data) const;
  [[nodiscard]] uint64_t unclaimed() const { return x_unclaimed.load(std::memory_order_relaxed); }

 private:
  struct Entry {
    BusRange range;
    BusDevice* device = nullptr;
  };
  struct Hit {
    BusDevice* device = nullptr;
    uint64_t offset = 0;
  };
  Hit find(uint64_t address, size_t size) const;

  const char* x_name;
  RcuCell<std::vector<Entry>> x_entries;  // sorted by start, not overlapping
  mutable std::atomic<uint64_t> x_unclaimed{0};
};

// ioeventfd: writes that signal an eventfd without leaving the kernel. The vmm implements it over
// KVM; tests record it.
class DoorbellBinder {
 public:
  virtual ~DoorbellBinder() = default;
  // Guest writes of any size to the MMIO address signal `event` from now on.
  [[nodiscard]] virtual Result<> bind_doorbell(uint64_t address, const EventFd& event) = 0;
  virtual void unbind_doorbell(uint64_t address, const EventFd& event) = 0;
};

// Host memory that a guest sees at a guest-physical address, without exits: what is behind a BAR.
// The vmm implements it by KVM memory slots; tests record it.
class DeviceMemoryBinder {
 public:
  virtual ~DeviceMemoryBinder() = default;
  // `address`, `size` and `host` are page aligned; the host range must stay mapped and writable
  // until unbind_memory() has returned. Fails when the host is out of slots or memory. Any thread.
  [[nodiscard]] virtual Result<> bind_memory(uint64_t address, uint64_t size, uint8_t* host) = 0;
  virtual void unbind_memory(uint64_t address) = 0;
};

}  // namespace lethe
