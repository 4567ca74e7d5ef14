// The serial port's place on the bus, made cheaper: while a guest writes by polling, as kernels do
// for their console until user space opens it, KVM collects the bytes and each costs one exit (the
// status register's) rather than two. Half of a stock Debian kernel's boot is its console.
#pragma once

#include <atomic>
#include <memory>

#include "base/event_loop.h"
#include "base/state.h"
#include "devices/bus.h"
#include "devices/legacy/serial/serial.h"
#include "vmm/kvm/coalesced_writes.h"

namespace lethe {

// Coalescing starts at the first read of the line status register, so only guests that poll get it,
// and ends for good when the guest asks for transmit interrupts: those are due at once, and a guest
// that waits for one may make no exit at all. The byte after which a polling guest falls silent is
// taken out by a timer, armed by each status read.
//
// Threading: bus_* on vCPU threads, the timer on the loop's thread. Destroyed when neither runs.
class SerialPort final : public BusDevice {
 public:
  // `writes` may be null: then it only forwards. `ports` is the bus that this is on.
  SerialPort(EventLoop& loop, Serial& serial, const Bus& ports);

  void set_coalesced_writes(CoalescedWrites* writes) { x_writes = writes; }

  // Snapshots, while no vCPU runs: whether coalescing has ended for good.
  void save(StateWriter& to);
  void restore(StateReader& from);

  void bus_read(uint64_t offset, std::span<uint8_t> data) override;
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  enum class Mode : uint8_t { kUnused, kCoalescing, kEnded };
  void on_status_read();
  void arm_timer();

  EventLoop& x_loop;
  Serial& x_serial;
  const Bus& x_ports;
  CoalescedWrites* x_writes = nullptr;  // set before the vCPUs run
  std::unique_ptr<EventLoop::Timer> x_timer;
  std::atomic<Mode> x_mode{Mode::kUnused};
  std::atomic<bool> x_timer_armed{false};
  bool x_last_look = false;  // loop's thread
};

}  // namespace lethe
