#include "devices/legacy/serial/serial.h"

#include <gtest/gtest.h>
#include <linux/serial_reg.h>

#include <numeric>

#include "devices/legacy/legacy_test_util.h"

namespace lethe {
namespace {

struct SerialTest : testing::Test {
  void out(uint64_t offset, uint8_t value) { out8(serial, offset, value); }
  uint8_t in(uint64_t offset) { return in8(serial, offset); }
  void run_posted() {
    loop.stop();
    loop.run();
  }
  size_t receive(std::string_view text) {
    // SAFETY: bytes of the text, as they are.
    return serial.receive({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  EventLoop loop;
  CountingInterrupt irq;
  TestSink sink;
  Serial serial{loop, irq, sink};
};

TEST_F(SerialTest, is_found_as_16550a_by_linux_probe) {
  // The order of autoconfig() and autoconfig_16550a() in Linux's 8250_port.c.
  out(UART_IER, 0);
  EXPECT_EQ(in(UART_IER), 0);
  out(UART_IER, 0x0f);
  EXPECT_EQ(in(UART_IER), 0x0f);
  out(UART_IER, 0);
  out(UART_MCR, UART_MCR_LOOP | 0x0a);
  EXPECT_EQ(in(UART_MSR) & 0xf0, 0x90);
  out(UART_MCR, 0);
  out(UART_LCR, 0xbf);
  out(UART_EFR, 0);
  out(UART_LCR, 0);
  out(UART_FCR, UART_FCR_ENABLE_FIFO);
  EXPECT_EQ(in(UART_IIR) >> 6, 3);
  out(UART_LCR, UART_LCR_CONF_MODE_A);
  EXPECT_NE(in(UART_EFR), 0) << "would be a 16650";
  out(UART_LCR, UART_LCR_CONF_MODE_B);
  EXPECT_NE(in(UART_EFR), 0) << "would be a 16650V2";
  out(UART_LCR, 0);
  out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR7_64BYTE);
  EXPECT_EQ(in(UART_IIR) >> 5, 6) << "would be a 16750";
  out(UART_IER, UART_IER_UUE);
  EXPECT_EQ(in(UART_IER), 0) << "would be an XScale";
}

TEST_F(SerialTest, passes_linux_test_for_a_transmit_interrupt_that_comes_back) {
  out(UART_FCR, UART_FCR_ENABLE_FIFO);
  out(UART_IER, UART_IER_THRI);
  EXPECT_EQ(in(UART_IIR) & 0x0f, UART_IIR_THRI);
  out(UART_IER, 0);
  out(UART_IER, UART_IER_THRI);
  EXPECT_EQ(in(UART_IIR) & 0x0f, UART_IIR_THRI);
  EXPECT_EQ(in(UART_IIR) & 0x0f, UART_IIR_NO_INT) << "reading acknowledges";
}

TEST_F(SerialTest, hands_output_to_the_sink) {
  for (const char c : std::string("hello\n")) out(UART_TX, static_cast<uint8_t>(c));
  EXPECT_EQ(sink.text, "hello\n");
  EXPECT_EQ(in(UART_LSR), UART_LSR_THRE | UART_LSR_TEMT);
  EXPECT_EQ(irq.count, 0) << "no interrupt was enabled";
}

TEST_F(SerialTest, divisor_latch_hides_data_and_interrupt_enable) {
  out(UART_IER, UART_IER_RDI);
  out(UART_LCR, UART_LCR_DLAB | UART_LCR_WLEN8);
  out(UART_DLL, 0x34);
  out(UART_DLM, 0x12);
  EXPECT_EQ(in(UART_DLL), 0x34);
  EXPECT_EQ(in(UART_DLM), 0x12);
  out(UART_LCR, UART_LCR_WLEN8);
  EXPECT_EQ(in(UART_IER), UART_IER_RDI);
  EXPECT_EQ(in(UART_LCR), UART_LCR_WLEN8);
  EXPECT_EQ(sink.text, "");
}

TEST_F(SerialTest, transmit_interrupt_comes_after_each_batch) {
  out(UART_FCR, UART_FCR_ENABLE_FIFO);
  out(UART_IER, UART_IER_THRI);
  EXPECT_EQ(irq.count, 1) << "enabling it with an empty transmitter raises it";
  for (int batch = 2; batch < 10; ++batch) {
    EXPECT_EQ(in(UART_IIR) & 0x0f, UART_IIR_THRI);
    for (size_t i = 0; i < Serial::kFifoSize; ++i) out(UART_TX, 'x');
    EXPECT_EQ(irq.count, batch) << "one edge for the whole batch";
  }
}

TEST_F(SerialTest, receive_interrupt_lasts_until_all_is_read) {
  out(UART_FCR, UART_FCR_ENABLE_FIFO);
  out(UART_IER, UART_IER_RDI);
  EXPECT_EQ(receive("ab"), 2u);
  EXPECT_EQ(irq.count, 1);
  EXPECT_EQ(in(UART_IIR) & 0x0f, UART_IIR_RDI);
  EXPECT_EQ(in(UART_RX), 'a');
  EXPECT_EQ(in(UART_IIR) & 0x0f, UART_IIR_RDI);
  EXPECT_EQ(in(UART_LSR)&UART_LSR_DR, UART_LSR_DR);
  EXPECT_EQ(in(UART_RX), 'b');
  EXPECT_EQ(in(UART_IIR) & 0x0f, UART_IIR_NO_INT);
  EXPECT_EQ(in(UART_LSR)&UART_LSR_DR, 0);
  EXPECT_EQ(in(UART_RX), 0);
  receive("c");
  EXPECT_EQ(irq.count, 2);
}

TEST_F(SerialTest, signals_again_when_a_cause_comes_while_the_line_is_up) {
  // The first edge is lost (say, the I/O APIC's pin was masked); the next byte makes it good.
  out(UART_IER, UART_IER_RDI);
  receive("a");
  receive("b");
  EXPECT_EQ(irq.count, 2);
}

TEST_F(SerialTest, enabling_an_interrupt_signals_what_is_pending) {
  receive("a");
  EXPECT_EQ(irq.count, 0);
  out(UART_IER, UART_IER_RDI);
  EXPECT_EQ(irq.count, 1);
}

TEST_F(SerialTest, causes_are_reported_by_priority) {
  out(UART_MCR, UART_MCR_LOOP);
  out(UART_IER, UART_IER_MSI | UART_IER_RLSI | UART_IER_THRI | UART_IER_RDI);
  out(UART_TX, 'a');
  out(UART_TX, 'b');  // FIFOs are off: the second byte overruns
  EXPECT_EQ(in(UART_IIR), UART_IIR_RLSI);
  EXPECT_EQ(in(UART_LSR)&UART_LSR_OE, UART_LSR_OE);
  EXPECT_EQ(in(UART_IIR), UART_IIR_RDI);
  EXPECT_EQ(in(UART_RX), 'a');
  EXPECT_EQ(in(UART_IIR), UART_IIR_THRI);
  EXPECT_EQ(in(UART_IIR), UART_IIR_MSI) << "the modem lines fell when it was looped back";
  EXPECT_NE(in(UART_MSR)&UART_MSR_ANY_DELTA, 0);
  EXPECT_EQ(in(UART_IIR), UART_IIR_NO_INT);
}

TEST_F(SerialTest, loop_back_returns_output_as_input_and_sends_nothing) {
  out(UART_FCR, UART_FCR_ENABLE_FIFO);
  out(UART_MCR, UART_MCR_LOOP);
  EXPECT_EQ(receive("host"), 4u);
  for (char c = 'a'; c < 'a' + 16; ++c) out(UART_TX, static_cast<uint8_t>(c));
  for (char c = 'a'; c < 'a' + 16; ++c) EXPECT_EQ(in(UART_RX), c);
  EXPECT_EQ(sink.text, "");
  out(UART_MCR, 0);
  EXPECT_EQ(in(UART_RX), 'h') << "what the host sent waited";
}

TEST_F(SerialTest, modem_status_deltas_are_cleared_by_reading) {
  EXPECT_EQ(in(UART_MSR), UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS);
  out(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT1);
  EXPECT_EQ(in(UART_MSR), UART_MSR_RI | UART_MSR_DCTS | UART_MSR_DDSR | UART_MSR_DDCD);
  out(UART_MCR, UART_MCR_LOOP);
  EXPECT_EQ(in(UART_MSR), UART_MSR_TERI);
  EXPECT_EQ(in(UART_MSR), 0);
}

TEST_F(SerialTest, transmitter_stays_full_while_the_sink_takes_nothing) {
  sink.room = 0;
  out(UART_FCR, UART_FCR_ENABLE_FIFO);
  out(UART_IER, UART_IER_THRI);
  (void)in(UART_IIR);
  std::string sent;
  for (char c = 'a'; c < 'a' + 16; ++c) {
    out(UART_TX, static_cast<uint8_t>(c));
    sent.push_back(c);
  }
  EXPECT_EQ(in(UART_LSR) & (UART_LSR_THRE | UART_LSR_TEMT), 0);
  EXPECT_EQ(in(UART_IIR) & 0x0f, UART_IIR_NO_INT);
  const int before = irq.count;
  sink.make_room(10);
  EXPECT_EQ(irq.count, before);
  sink.make_room(100);
  EXPECT_EQ(sink.text, sent);
  EXPECT_EQ(irq.count, before + 1);
  EXPECT_EQ(in(UART_IIR) & 0x0f, UART_IIR_THRI);
  EXPECT_EQ(serial.counters().bytes_dropped, 0u);
}

TEST_F(SerialTest, counts_bytes_written_into_a_full_transmitter) {
  sink.room = 0;
  out(UART_FCR, UART_FCR_ENABLE_FIFO);
  for (int i = 0; i < 20; ++i) out(UART_TX, 'x');
  EXPECT_EQ(serial.counters().bytes_dropped, 4u);
  sink.make_room(100);
  EXPECT_EQ(sink.text, std::string(16, 'x'));
  EXPECT_EQ(serial.counters().bytes_out, 16u);
}

TEST_F(SerialTest, input_is_bounded_and_asks_for_more) {
  int asked = 0;
  serial.set_room_listener([&] { ++asked; });
  out(UART_FCR, UART_FCR_ENABLE_FIFO);
  std::string text(2000, ' ');
  std::iota(text.begin(), text.end(), 0);
  size_t sent = receive(text);
  EXPECT_EQ(sent, Serial::kInputMax);
  sent += receive(std::string_view(text).substr(sent));
  EXPECT_EQ(sent, Serial::kInputMax + Serial::kFifoSize);
  EXPECT_EQ(receive(std::string_view(text).substr(sent)), 0u);
  run_posted();
  EXPECT_EQ(asked, 0);

  std::string got;
  while ((in(UART_LSR)&UART_LSR_DR) != 0) got.push_back(static_cast<char>(in(UART_RX)));
  run_posted();
  EXPECT_EQ(asked, 1);
  receive(std::string_view(text).substr(sent));
  while ((in(UART_LSR)&UART_LSR_DR) != 0) got.push_back(static_cast<char>(in(UART_RX)));
  EXPECT_EQ(got, text) << "nothing lost, nothing twice";
}

TEST_F(SerialTest, clearing_the_receive_fifo_loses_at_most_its_16_bytes) {
  out(UART_FCR, UART_FCR_ENABLE_FIFO);
  receive(std::string(16, 'a') + "kept");
  out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR);
  EXPECT_EQ(in(UART_RX), 'k');
}

TEST_F(SerialTest, survives_every_access_and_works_when_set_up_again) {
  access_every_way(serial, kSerialPorts);
  out(UART_LCR, 0);
  out(UART_IER, 0);
  out(UART_MCR, 0);
  out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT);
  sink.text.clear();
  out(UART_TX, '!');
  EXPECT_EQ(sink.text, "!");
  EXPECT_EQ(in(UART_IER), 0);
  EXPECT_EQ(in(kSerialPorts), 0xff);
}

}  // namespace
}  // namespace lethe
