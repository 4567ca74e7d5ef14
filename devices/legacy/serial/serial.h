// A 16550A serial port, as Linux's 8250 driver probes and drives it.
#pragma once

#include <atomic>
#include <functional>

#include "base/event_loop.h"
#include "base/mutex.h"
#include "base/state.h"
#include "devices/bus.h"
#include "devices/byte_ring.h"
#include "devices/byte_stream.h"
#include "devices/interrupt.h"

namespace lethe {

inline constexpr uint16_t kSerialPort = 0x3f8;  // COM1
inline constexpr uint16_t kSerialPorts = 8;
inline constexpr uint8_t kSerialIrq = 4;

struct SerialCounters {  // any thread
  std::atomic<uint64_t> bytes_out{0};
  std::atomic<uint64_t> bytes_in{0};
  // Written by the guest although the transmitter was not empty: lost, as on the real thing.
  std::atomic<uint64_t> bytes_dropped{0};
};

// Back pressure is the chip's own: while the sink takes nothing, the transmit FIFO stays full and
// the line status register says so. A guest's driver waits for the interrupt; a kernel's console
// gives up after its own time (Linux: 10 ms a byte) and writes into a full FIFO, which drops the
// byte and counts it. So a vCPU never blocks here.
//
// Input goes into a buffer of kInputMax bytes behind the 16-byte receive FIFO, so an overrun can't
// happen outside of loop-back mode. Characters take no time, whatever the divisor says; receive
// trigger levels are accepted and treated as 1.
//
// The interrupt is an edge. It is signalled when the chip's line rises, and also when another cause
// comes while the line is up: a handler that ignores a spurious interrupt loses nothing, and a lost
// edge is made good by the next event.
//
// Threading: bus_* on vCPU threads; receive() and the listeners on `loop`'s thread. It locks. Must
// outlive the loop's last run; destroyed on the loop's thread or when the loop does not run.
class Serial : public BusDevice, public ByteReceiver {
 public:
  static constexpr size_t kFifoSize = 16;
  static constexpr size_t kInputMax = 1024;

  Serial(EventLoop& loop, Interrupt& interrupt, ByteSink& output);

  // Snapshots, while no vCPU runs. restore() is for a device as made; the file may be anybody's.
  void save(StateWriter& to) LETHE_EXCLUDES(x_mutex);
  void restore(StateReader& from) LETHE_EXCLUDES(x_mutex);

  void bus_read(uint64_t offset, std::span<uint8_t> data) override;
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override;

  size_t receive(std::span<const uint8_t> bytes) override;
  void set_room_listener(std::function<void()> listener) override;

  [[nodiscard]] const SerialCounters& counters() const { return x_counters; }

 private:
  uint8_t read_register(uint64_t offset) LETHE_REQUIRES(x_mutex);
  void write_register(uint64_t offset, uint8_t value) LETHE_REQUIRES(x_mutex);
  uint8_t interrupt_identification() const LETHE_REQUIRES(x_mutex);
  uint8_t modem_lines() const LETHE_REQUIRES(x_mutex);
  bool divisor_latched() const LETHE_REQUIRES(x_mutex);
  bool looped_back() const LETHE_REQUIRES(x_mutex);
  void write_fifo_control(uint8_t value) LETHE_REQUIRES(x_mutex);
  void write_modem_control(uint8_t value) LETHE_REQUIRES(x_mutex);
  void write_interrupt_enable(uint8_t value) LETHE_REQUIRES(x_mutex);
  void transmit(uint8_t byte) LETHE_REQUIRES(x_mutex);
  void drain() LETHE_REQUIRES(x_mutex);
  void refill() LETHE_REQUIRES(x_mutex);
  void update_interrupt(bool new_cause) LETHE_REQUIRES(x_mutex);
  size_t fifo_depth() const LETHE_REQUIRES(x_mutex);

  EventLoop& x_loop;
  Interrupt& x_interrupt;
  ByteSink& x_output;
  std::function<void()> x_room_listener;  // loop's thread
  SerialCounters x_counters;

  // Everything the guest can set, and what follows from it.
  struct State {
    ByteRing<kFifoSize> tx;
    ByteRing<kFifoSize> rx;
    uint16_t divisor = 12;         // 9600 baud
    uint8_t interrupt_enable = 0;  // IER
    uint8_t line_control = 0;      // LCR
    uint8_t modem_control = 0;     // MCR
    uint8_t modem_deltas = 0;      // MSR bits 0-3
    uint8_t scratch = 0;           // SCR
    bool fifos_enabled = false;
    bool transmit_cause = false;  // a THRE interrupt not yet seen
    bool overrun = false;         // LSR.OE
    bool line_up = false;         // the interrupt line
  };
  Mutex x_mutex;
  State x_state LETHE_GUARDED_BY(x_mutex);
  ByteRing<kInputMax> x_input LETHE_GUARDED_BY(x_mutex);
  bool x_input_refused LETHE_GUARDED_BY(x_mutex) = false;
};

}  // namespace lethe
