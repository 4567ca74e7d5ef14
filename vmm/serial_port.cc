#include "vmm/serial_port.h"

#include <linux/serial_reg.h>

namespace lethe {
namespace {

constexpr std::chrono::milliseconds kSilence{10};
constexpr std::chrono::milliseconds kLastLook{200};

}  // namespace

SerialPort::SerialPort(EventLoop& loop, Serial& serial, const Bus& ports)
    : x_loop(loop), x_serial(serial), x_ports(ports) {
  x_timer = loop.make_timer([this] {
    const bool found = x_writes->drain(x_ports);
    if (found || !x_last_look) {
      // Once more after the first empty look: a vCPU may be held up between status and byte.
      x_last_look = !found;
      x_timer->start(found ? kSilence : kLastLook);
      return;
    }
    x_last_look = false;
    x_timer_armed.store(false, std::memory_order_relaxed);
  });
}

void SerialPort::bus_read(uint64_t offset, std::span<uint8_t> data) {
  if (offset == UART_LSR && x_writes != nullptr) on_status_read();
  x_serial.bus_read(offset, data);
}

void SerialPort::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  if (offset == UART_IER && !data.empty() && (data[0] & UART_IER_THRI) != 0 &&
      x_writes != nullptr) {
    if (x_mode.exchange(Mode::kEnded) == Mode::kCoalescing) {
      (void)x_writes->set_coalesced(kSerialPort + UART_TX, false);
      (void)x_writes->drain(x_ports);  // another vCPU may have been quicker
    }
  }
  x_serial.bus_write(offset, data);
}

void SerialPort::on_status_read() {
  Mode unused = Mode::kUnused;
  if (x_mode.load(std::memory_order_relaxed) == Mode::kUnused &&
      x_mode.compare_exchange_strong(unused, Mode::kCoalescing) &&
      !x_writes->set_coalesced(kSerialPort + UART_TX, true))
    x_mode.store(Mode::kEnded);
  if (x_mode.load(std::memory_order_relaxed) == Mode::kCoalescing) arm_timer();
}

void SerialPort::arm_timer() {
  if (x_timer_armed.exchange(true, std::memory_order_relaxed)) return;
  x_loop.post([this] { x_timer->start(kSilence); });
}

void SerialPort::save(StateWriter& to) {
  to.begin_section("serial-port", 1);
  to.boolean(x_mode.load(std::memory_order_relaxed) == Mode::kEnded);
  to.end_section();
}

// Where it had begun, it begins again with the next status read.
void SerialPort::restore(StateReader& from) {
  from.begin_section("serial-port", 1);
  if (from.boolean()) x_mode.store(Mode::kEnded, std::memory_order_relaxed);
  from.end_section();
}

}  // namespace lethe
