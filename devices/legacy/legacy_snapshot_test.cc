// Legacy devices are the same after a snapshot.
#include <gtest/gtest.h>
#include <linux/serial_reg.h>

#include <cstring>

#include "devices/legacy/acpi_power/acpi_power.h"
#include "devices/legacy/ioapic/ioapic.h"
#include "devices/legacy/legacy_test_util.h"
#include "devices/legacy/rtc/rtc.h"
#include "devices/legacy/serial/serial.h"

namespace lethe {
namespace {

template <typename Device>
std::vector<uint8_t> saved(Device& device) {
  StateWriter writer;
  device.save(writer);
  return writer.take();
}

template <typename Device>
bool restored(Device& device, std::span<const uint8_t> bytes) {
  StateReader reader(bytes);
  device.restore(reader);
  return reader.ok();
}

struct SerialSnapshot : testing::Test {
  size_t receive(Serial& to, std::string_view text) {
    // SAFETY: bytes of the text, as they are.
    return to.receive({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  EventLoop loop;
  CountingInterrupt irq, other_irq;
  TestSink sink, other_sink;
  Serial serial{loop, irq, sink};
  Serial other{loop, other_irq, other_sink};
};

TEST_F(SerialSnapshot, keeps_registers_and_input_and_signals_what_was_on_its_way) {
  out8(serial, UART_LCR, UART_LCR_DLAB);
  out8(serial, UART_TX, 0x01);
  out8(serial, UART_LCR, 0x03);
  out8(serial, UART_FCR, UART_FCR_ENABLE_FIFO);
  out8(serial, UART_SCR, 0x5a);
  out8(serial, UART_IER, UART_IER_RDI);
  const std::string text(100, 'x');
  ASSERT_EQ(receive(serial, text), text.size());
  ASSERT_TRUE(restored(other, saved(serial)));
  EXPECT_EQ(other_irq.count, 1);
  EXPECT_EQ(saved(other), saved(serial));
  std::string got;
  while ((in8(other, UART_LSR) & UART_LSR_DR) != 0) got += static_cast<char>(in8(other, UART_RX));
  EXPECT_EQ(got, text);
  EXPECT_EQ(in8(other, UART_SCR), 0x5a);
  EXPECT_EQ(in8(other, UART_LCR), 0x03);
}

TEST_F(SerialSnapshot, output_that_was_held_back_goes_out) {
  sink.room = 0;
  out8(serial, UART_FCR, UART_FCR_ENABLE_FIFO);
  for (const char c : std::string("held")) out8(serial, UART_TX, static_cast<uint8_t>(c));
  ASSERT_TRUE(restored(other, saved(serial)));
  EXPECT_EQ(other_sink.text, "held");
}

TEST_F(SerialSnapshot, more_than_its_buffers_hold_is_refused_and_changes_nothing) {
  StateWriter writer;
  writer.begin_section("serial", 1);
  writer.bytes(std::vector<uint8_t>(Serial::kFifoSize + 1));
  writer.end_section();
  const auto before = saved(other);
  EXPECT_FALSE(restored(other, writer.take()));
  EXPECT_EQ(saved(other), before);
  const auto good = saved(serial);
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(restored(other, std::span(good).first(size))) << size;
}

TEST(RtcSnapshot, keeps_its_memory_and_bounds_its_index) {
  Rtc rtc, other;
  out8(rtc, 0, 0x40);
  out8(rtc, 1, 0x77);
  auto bytes = saved(rtc);
  ASSERT_TRUE(restored(other, bytes));
  EXPECT_EQ(in8(other, 1), 0x77);
  const auto at = bytes.size() - 128 - sizeof(uint32_t) - 1;
  ASSERT_EQ(bytes[at], 0x40);
  bytes[at] = 0xff;
  ASSERT_TRUE(restored(other, bytes));
  (void)in8(other, 1);  // of register 0x7f
}

TEST(AcpiPowerSnapshot, a_button_that_was_not_yet_seen_is_pressed_again) {
  RecordingControl control;
  CountingInterrupt irq, other_irq;
  AcpiPower power(control, irq), other(control, other_irq);
  ASSERT_TRUE(restored(other, saved(power)));
  EXPECT_EQ(other_irq.count, 0);
  power.power_button();
  ASSERT_TRUE(restored(other, saved(power)));
  EXPECT_EQ(other_irq.count, 1);
  EXPECT_EQ(in8(other, kAcpiEventPort - kAcpiPowerPort), kAcpiEventPowerButton);
}

struct SnapshotRoute final : MsiRoute {
  void signal() override { ++signals; }
  void set_message(const MsiMessage& to) override { message = to; }
  int signals = 0;
  MsiMessage message;
};
struct SnapshotController final : MsiController {
  Result<std::unique_ptr<MsiRoute>> make_route() override {
    auto made = std::make_unique<SnapshotRoute>();
    route = made.get();
    return Result<std::unique_ptr<MsiRoute>>(std::move(made));
  }
  SnapshotRoute* route = nullptr;
};

void write_ioapic(Ioapic& ioapic, uint32_t index, uint32_t value) {
  uint8_t bytes[4];
  std::memcpy(bytes, &index, sizeof bytes);
  ioapic.bus_write(0, bytes);
  std::memcpy(bytes, &value, sizeof bytes);
  ioapic.bus_write(0x10, bytes);
}

TEST(IoapicSnapshot, keeps_entries_and_an_edge_under_a_mask) {
  SnapshotController controller, other_controller;
  Ioapic ioapic(controller), other(other_controller);
  const auto line = std::move(*ioapic.make_line(4));
  const auto other_line = std::move(*other.make_line(4));
  write_ioapic(ioapic, 0x19, 0x0300'0000);
  write_ioapic(ioapic, 0x18, 0x1'0931);  // masked
  line->signal();
  ASSERT_TRUE(restored(other, saved(ioapic)));
  EXPECT_EQ(saved(other), saved(ioapic));
  EXPECT_EQ(other_controller.route->signals, 0);
  write_ioapic(other, 0x18, 0x0931);
  EXPECT_EQ(other_controller.route->signals, 1);
  EXPECT_EQ(other_controller.route->message, (MsiMessage{.address = 0xFEE0'3004, .data = 0x131}));
}

TEST(IoapicSnapshot, every_truncation_is_refused) {
  SnapshotController controller;
  Ioapic ioapic(controller), other(controller);
  const auto bytes = saved(ioapic);
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(restored(other, std::span(bytes).first(size))) << size;
}

}  // namespace
}  // namespace lethe
