#include "devices/legacy/serial/serial.h"

#include <linux/serial_reg.h>

namespace lethe {
namespace {

constexpr uint8_t kInterruptEnableMask =
    UART_IER_MSI | UART_IER_RLSI | UART_IER_THRI | UART_IER_RDI;
constexpr uint8_t kModemControlMask =
    UART_MCR_LOOP | UART_MCR_OUT2 | UART_MCR_OUT1 | UART_MCR_RTS | UART_MCR_DTR;
constexpr uint8_t kFifosEnabled = 0xc0;  // IIR bits 6 and 7: a 16550A with working FIFOs
constexpr uint8_t kModemLinesUp = UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;

template <size_t kCapacity>
void save_ring(ByteRing<kCapacity> ring, StateWriter& to) {
  std::vector<uint8_t> bytes;
  while (!ring.empty()) bytes.push_back(ring.pop_one());
  to.bytes(bytes);
}

template <size_t kCapacity>
void restore_ring(ByteRing<kCapacity>& ring, StateReader& from) {
  ring.clear();
  ring.push(from.bytes(kCapacity));
}

}  // namespace

Serial::Serial(EventLoop& loop, Interrupt& interrupt, ByteSink& output)
    : x_loop(loop), x_interrupt(interrupt), x_output(output) {
  x_output.add_room_listener([this] {
    MutexLock lock(x_mutex);
    if (x_state.tx.empty()) return;
    drain();
    update_interrupt(x_state.transmit_cause);
  });
}

void Serial::set_room_listener(std::function<void()> listener) {
  x_room_listener = std::move(listener);
}

bool Serial::divisor_latched() const { return (x_state.line_control & UART_LCR_DLAB) != 0; }
bool Serial::looped_back() const { return (x_state.modem_control & UART_MCR_LOOP) != 0; }
size_t Serial::fifo_depth() const { return x_state.fifos_enabled ? kFifoSize : 1; }

// An access wider than a byte is what the ISA bus makes of it: bytes at consecutive ports.
void Serial::bus_read(uint64_t offset, std::span<uint8_t> data) {
  MutexLock lock(x_mutex);
  for (uint8_t& byte : data) byte = read_register(offset++);
}

void Serial::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  MutexLock lock(x_mutex);
  for (const uint8_t byte : data) write_register(offset++, byte);
}

uint8_t Serial::read_register(uint64_t offset) {
  switch (offset) {
    case UART_RX: {
      if (divisor_latched()) return static_cast<uint8_t>(x_state.divisor);
      const uint8_t byte = x_state.rx.empty() ? 0 : x_state.rx.pop_one();
      refill();
      update_interrupt(false);
      return byte;
    }
    case UART_IER:
      if (divisor_latched()) return static_cast<uint8_t>(x_state.divisor >> 8);
      return x_state.interrupt_enable;
    case UART_IIR: {
      const uint8_t id = interrupt_identification();
      if (id == UART_IIR_THRI) x_state.transmit_cause = false;  // reading it is the acknowledgement
      update_interrupt(false);
      return id | (x_state.fifos_enabled ? kFifosEnabled : 0);
    }
    case UART_LCR:
      return x_state.line_control;
    case UART_MCR:
      return x_state.modem_control;
    case UART_LSR: {
      const uint8_t status = (x_state.tx.empty() ? UART_LSR_THRE | UART_LSR_TEMT : 0) |
                             (x_state.rx.empty() ? 0 : UART_LSR_DR) |
                             (x_state.overrun ? UART_LSR_OE : 0);
      x_state.overrun = false;
      update_interrupt(false);
      return status;
    }
    case UART_MSR: {
      const uint8_t status = modem_lines() | x_state.modem_deltas;
      x_state.modem_deltas = 0;
      update_interrupt(false);
      return status;
    }
    case UART_SCR:
      return x_state.scratch;
    default:
      return 0xff;
  }
}

void Serial::write_register(uint64_t offset, uint8_t value) {
  switch (offset) {
    case UART_TX:
      if (divisor_latched()) {
        x_state.divisor = static_cast<uint16_t>((x_state.divisor & 0xff00) | value);
      } else {
        transmit(value);
      }
      break;
    case UART_IER:
      if (divisor_latched()) {
        x_state.divisor = static_cast<uint16_t>((x_state.divisor & 0x00ff) | (value << 8));
      } else {
        write_interrupt_enable(value);
      }
      break;
    case UART_FCR:
      write_fifo_control(value);
      break;
    case UART_LCR:
      x_state.line_control = value;
      break;
    case UART_MCR:
      write_modem_control(value);
      break;
    case UART_SCR:
      x_state.scratch = value;
      break;
    default:  // LSR and MSR are read only
      break;
  }
}

// The highest-priority cause that is enabled and present.
uint8_t Serial::interrupt_identification() const {
  const uint8_t enabled = x_state.interrupt_enable;
  if ((enabled & UART_IER_RLSI) != 0 && x_state.overrun) return UART_IIR_RLSI;
  if ((enabled & UART_IER_RDI) != 0 && !x_state.rx.empty()) return UART_IIR_RDI;
  if ((enabled & UART_IER_THRI) != 0 && x_state.transmit_cause) return UART_IIR_THRI;
  if ((enabled & UART_IER_MSI) != 0 && x_state.modem_deltas != 0) return UART_IIR_MSI;
  return UART_IIR_NO_INT;
}

void Serial::update_interrupt(bool new_cause) {
  const bool up = interrupt_identification() != UART_IIR_NO_INT;
  const bool signal = up && (new_cause || !x_state.line_up);
  x_state.line_up = up;
  if (signal) x_interrupt.signal();
}

// Looped back, the outputs RTS, DTR, OUT1 and OUT2 drive the inputs CTS, DSR, RI and DCD.
uint8_t Serial::modem_lines() const {
  if (!looped_back()) return kModemLinesUp;
  const uint8_t control = x_state.modem_control;
  return ((control & UART_MCR_RTS) != 0 ? UART_MSR_CTS : 0) |
         ((control & UART_MCR_DTR) != 0 ? UART_MSR_DSR : 0) |
         ((control & UART_MCR_OUT1) != 0 ? UART_MSR_RI : 0) |
         ((control & UART_MCR_OUT2) != 0 ? UART_MSR_DCD : 0);
}

void Serial::write_modem_control(uint8_t value) {
  const uint8_t before = modem_lines();
  x_state.modem_control = value & kModemControlMask;
  const uint8_t after = modem_lines();
  // The deltas lie four bits below their lines; the ring indicator's marks its falling edge only.
  uint8_t deltas = static_cast<uint8_t>((before ^ after) >> 4);
  if ((after & UART_MSR_RI) != 0) deltas &= static_cast<uint8_t>(~UART_MSR_TERI);
  x_state.modem_deltas |= deltas;
  refill();  // input that waited while looped back
  update_interrupt(deltas != 0);
}

void Serial::write_interrupt_enable(uint8_t value) {
  const uint8_t enabled = value & kInterruptEnableMask;
  const uint8_t newly = enabled & static_cast<uint8_t>(~x_state.interrupt_enable);
  // Enabling the transmit interrupt with an empty transmitter raises it: drivers start that way.
  if ((newly & UART_IER_THRI) != 0 && x_state.tx.empty()) x_state.transmit_cause = true;
  x_state.interrupt_enable = enabled;
  update_interrupt(newly != 0);
}

void Serial::write_fifo_control(uint8_t value) {
  const bool enable = (value & UART_FCR_ENABLE_FIFO) != 0;
  const bool changed = enable != x_state.fifos_enabled;
  x_state.fifos_enabled = enable;
  if (changed || (value & UART_FCR_CLEAR_RCVR) != 0) x_state.rx.clear();
  if (changed || (value & UART_FCR_CLEAR_XMIT) != 0) {
    x_counters.bytes_dropped += x_state.tx.size();
    x_state.tx.clear();
  }
  refill();
  update_interrupt(false);
}

void Serial::transmit(uint8_t byte) {
  x_state.transmit_cause = false;
  if (looped_back()) {
    if (x_state.rx.size() >= fifo_depth()) {
      x_state.overrun = true;
    } else {
      x_state.rx.push(byte);
    }
    x_state.transmit_cause = x_state.tx.empty();
    update_interrupt(true);
    return;
  }
  if (x_state.tx.size() >= fifo_depth()) {
    ++x_counters.bytes_dropped;
  } else {
    x_state.tx.push(byte);
  }
  drain();
  // Not as a new cause: a driver fills the FIFO byte by byte, and one edge is enough for all.
  update_interrupt(false);
}

// Hands the transmit FIFO to the sink; once it is empty, that is the transmit interrupt's cause.
void Serial::drain() {
  while (!x_state.tx.empty()) {
    const size_t taken = x_output.write(x_state.tx.front());
    if (taken == 0) break;
    x_state.tx.pop(taken);
    x_counters.bytes_out += taken;
  }
  if (x_state.tx.empty()) x_state.transmit_cause = true;
}

// Moves input that waits into the receive FIFO; asks for more when half of the buffer is free.
void Serial::refill() {
  if (looped_back()) return;
  while (!x_input.empty() && x_state.rx.size() < fifo_depth()) x_state.rx.push(x_input.pop_one());
  if (x_input_refused && x_input.room() >= kInputMax / 2) {
    x_input_refused = false;
    x_loop.post([this] {
      if (x_room_listener) x_room_listener();
    });
  }
}

size_t Serial::receive(std::span<const uint8_t> bytes) {
  MutexLock lock(x_mutex);
  const size_t taken = x_input.push(bytes);
  x_counters.bytes_in += taken;
  if (taken < bytes.size()) x_input_refused = true;
  refill();
  update_interrupt(taken > 0);
  return taken;
}

void Serial::save(StateWriter& to) {
  MutexLock lock(x_mutex);
  to.begin_section("serial", 1);
  save_ring(x_state.tx, to);
  save_ring(x_state.rx, to);
  save_ring(x_input, to);
  to.number(x_state.divisor);
  for (const uint8_t value : {x_state.interrupt_enable, x_state.line_control, x_state.modem_control,
                              x_state.modem_deltas, x_state.scratch})
    to.number(value);
  for (const bool value : {x_state.fifos_enabled, x_state.transmit_cause, x_state.overrun})
    to.boolean(value);
  to.end_section();
}

void Serial::restore(StateReader& from) {
  MutexLock lock(x_mutex);
  from.begin_section("serial", 1);
  State state;
  restore_ring(state.tx, from);
  restore_ring(state.rx, from);
  restore_ring(x_input, from);
  state.divisor = from.number<uint16_t>();
  state.interrupt_enable = from.number<uint8_t>() & kInterruptEnableMask;
  state.line_control = from.number<uint8_t>();
  state.modem_control = from.number<uint8_t>() & kModemControlMask;
  state.modem_deltas = from.number<uint8_t>() & UART_MSR_ANY_DELTA;
  state.scratch = from.number<uint8_t>();
  state.fifos_enabled = from.boolean();
  state.transmit_cause = from.boolean();
  state.overrun = from.boolean();
  from.end_section();
  if (!from.ok()) return;
  x_state = state;
  if (!x_state.tx.empty()) drain();
  // As new: an edge that was on its way to the guest is made good, one too many does no harm.
  update_interrupt(true);
}

}  // namespace lethe
