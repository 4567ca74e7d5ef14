// The small legacy devices, each by a driver's sequence of port accesses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <misc/pvpanic.h>

#include "devices/legacy/acpi_power/acpi_power.h"
#include "devices/legacy/debug_exit/debug_exit.h"
#include "devices/legacy/i8042/i8042.h"
#include "devices/legacy/legacy_test_util.h"
#include "devices/legacy/pvpanic/pvpanic.h"
#include "devices/legacy/rtc/rtc.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

uint8_t cmos(Rtc& rtc, uint8_t index) {
  out8(rtc, 0, index);
  return in8(rtc, 1);
}

TEST(RtcTest, tells_the_time_in_bcd_and_utc) {
  int64_t now = 1709251199;  // Thursday, 2024-02-29 23:59:59 UTC
  Rtc rtc([&] { return now; });
  EXPECT_EQ(cmos(rtc, 0x0a) & 0x80, 0) << "no update in progress";
  EXPECT_EQ(cmos(rtc, 0x00), 0x59);
  EXPECT_EQ(cmos(rtc, 0x02), 0x59);
  EXPECT_EQ(cmos(rtc, 0x04), 0x23);
  EXPECT_EQ(cmos(rtc, 0x06), 5);
  EXPECT_EQ(cmos(rtc, 0x07), 0x29);
  EXPECT_EQ(cmos(rtc, 0x08), 0x02);
  EXPECT_EQ(cmos(rtc, 0x09), 0x24);
  EXPECT_EQ(cmos(rtc, kRtcCenturyIndex), 0x20);
  now = 946684799;  // Friday, 1999-12-31 23:59:59
  EXPECT_EQ(cmos(rtc, 0x09), 0x99);
  EXPECT_EQ(cmos(rtc, kRtcCenturyIndex), 0x19);
}

TEST(RtcTest, control_registers_are_sane_and_read_only) {
  Rtc rtc;
  for (uint8_t index = 0x0a; index <= 0x0d; ++index) {
    out8(rtc, 0, index);
    out8(rtc, 1, 0xff);
  }
  EXPECT_EQ(cmos(rtc, 0x0a), 0x26);
  EXPECT_EQ(cmos(rtc, 0x0b), 0x02) << "24 hours, BCD, no interrupts";
  EXPECT_EQ(cmos(rtc, 0x0c), 0x00);
  EXPECT_EQ(cmos(rtc, 0x0d), 0x80);
}

TEST(RtcTest, the_guest_can_not_set_the_time) {
  Rtc rtc([] { return int64_t{0}; });
  for (const uint8_t index : std::initializer_list<uint8_t>{0, 2, 4, 6, 7, 8, 9, 0x32}) {
    out8(rtc, 0, index);
    out8(rtc, 1, 0x11);
  }
  EXPECT_EQ(cmos(rtc, 0x00), 0x00);
  EXPECT_EQ(cmos(rtc, 0x09), 0x70);
  EXPECT_EQ(cmos(rtc, kRtcCenturyIndex), 0x19);
}

TEST(RtcTest, keeps_ram_and_ignores_the_nmi_bit_of_the_index) {
  Rtc rtc;
  out8(rtc, 0, 0x80 | 0x40);
  out8(rtc, 1, 0xa7);
  EXPECT_EQ(cmos(rtc, 0x40), 0xa7);
  EXPECT_EQ(cmos(rtc, 0x41), 0);
  EXPECT_EQ(in8(rtc, 0), 0xff) << "the index is write only";
}

TEST(RtcTest, survives_every_access) {
  Rtc rtc;
  for (int index = 0; index < 256; ++index) {
    out8(rtc, 0, static_cast<uint8_t>(index));
    (void)in8(rtc, 1);
  }
  access_every_way(rtc, kRtcPorts);
  EXPECT_EQ(cmos(rtc, 0x0d), 0x80);
}

TEST(I8042Test, reset_command_resets) {
  RecordingControl control;
  I8042 i8042(control);
  EXPECT_EQ(in8(i8042, 4) & 0x02, 0) << "Linux waits for an empty input buffer first";
  out8(i8042, 4, 0xfe);
  EXPECT_THAT(control.events, ElementsAre("reset"));
}

TEST(I8042Test, looks_absent_to_a_driver_that_flushes_it) {
  RecordingControl control;
  I8042 i8042(control);
  int flushed = 0;
  while ((in8(i8042, 4) & 0x01) != 0 && flushed < 17) {
    (void)in8(i8042, 0);
    ++flushed;
  }
  EXPECT_EQ(flushed, 17) << "Linux: more than 16 bytes means there is no controller";
}

TEST(I8042Test, nothing_else_resets) {
  RecordingControl control;
  I8042 i8042(control);
  for (int value = 0; value < 256; ++value) {
    for (uint64_t offset = 0; offset < 8; ++offset) {
      if (offset != 4 || value != 0xfe) out8(i8042, offset, static_cast<uint8_t>(value));
    }
  }
  access_every_way(i8042, kI8042Ports);
  EXPECT_THAT(control.events, IsEmpty());
}

TEST(PvpanicTest, offers_both_events_and_reports_a_panic) {
  RecordingControl control;
  Pvpanic pvpanic(control);
  EXPECT_EQ(in8(pvpanic, 0), PVPANIC_PANICKED | PVPANIC_CRASH_LOADED);
  out8(pvpanic, 0, PVPANIC_PANICKED);
  EXPECT_THAT(control.events, ElementsAre("panic"));
}

TEST(PvpanicTest, a_loaded_crash_kernel_is_no_panic_yet) {
  RecordingControl control;
  Pvpanic pvpanic(control);
  out8(pvpanic, 0, PVPANIC_CRASH_LOADED);
  out8(pvpanic, 0, 0);
  out8(pvpanic, 0, 0xfc);
  out8(pvpanic, 1, PVPANIC_PANICKED);
  pvpanic.bus_write(0, {});
  EXPECT_THAT(control.events, IsEmpty());
  access_every_way(pvpanic, 1);
}

TEST(DebugExitTest, takes_8_16_and_32_bits) {
  RecordingControl control;
  DebugExit exit(control);
  const std::vector<uint8_t> bytes = {0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0};
  for (const size_t size : {size_t{1}, size_t{2}, size_t{4}}) {
    exit.bus_write(0, std::span(bytes).first(size));
  }
  EXPECT_THAT(control.events, ElementsAre("exit 120", "exit 22136", "exit 305419896"));
}

TEST(DebugExitTest, ignores_other_sizes_and_ports) {
  RecordingControl control;
  DebugExit exit(control);
  const std::vector<uint8_t> bytes(8);
  for (const size_t size : {size_t{0}, size_t{3}, size_t{5}, size_t{8}}) {
    exit.bus_write(0, std::span(bytes).first(size));
  }
  for (uint64_t offset = 1; offset < 8; ++offset) exit.bus_write(offset, bytes);
  EXPECT_THAT(control.events, IsEmpty());
  EXPECT_EQ(in8(exit, 0), 0xff);
}

struct AcpiPowerTest : testing::Test {
  RecordingControl control;
  CountingInterrupt irq;
  AcpiPower power{control, irq};
};

TEST_F(AcpiPowerTest, s5_powers_off) {
  out8(power, 1, 0x80);  // Linux clears the wake status first
  EXPECT_EQ(in8(power, 0), 0);
  out8(power, 0, (kAcpiS5SleepType << 2) | 0x20);
  EXPECT_THAT(control.events, ElementsAre("off"));
}

TEST_F(AcpiPowerTest, other_sleep_types_and_registers_do_nothing) {
  for (int value = 0; value < 256; ++value) {
    const bool s5 = ((value >> 2) & 7) == kAcpiS5SleepType && (value & 0x20) != 0;
    if (!s5) out8(power, 0, static_cast<uint8_t>(value));
    for (uint64_t offset = 1; offset < 8; ++offset) {
      out8(power, offset, static_cast<uint8_t>(value));
    }
  }
  EXPECT_THAT(control.events, IsEmpty());
}

TEST_F(AcpiPowerTest, power_button_is_pending_until_it_is_read_once) {
  EXPECT_EQ(in8(power, 4), 0);
  power.power_button();
  EXPECT_EQ(irq.count, 1);
  EXPECT_EQ(in8(power, 4), kAcpiEventPowerButton);
  EXPECT_EQ(in8(power, 4), 0);
}

TEST_F(AcpiPowerTest, pressing_again_heals_a_lost_edge) {
  power.power_button();
  power.power_button();
  EXPECT_EQ(irq.count, 2);
  EXPECT_EQ(in8(power, 4), kAcpiEventPowerButton);
}

TEST_F(AcpiPowerTest, survives_every_access) {
  access_every_way(power, kAcpiPowerPorts);
  power.power_button();
  EXPECT_EQ(in8(power, 4), kAcpiEventPowerButton);
}

TEST(ResetRegisterTest, resets_on_06_and_0e_only) {
  RecordingControl control;
  ResetRegister reset(control);
  for (int value = 0; value < 256; ++value) {
    if (value != 0x06 && value != 0x0e) out8(reset, 0, static_cast<uint8_t>(value));
  }
  access_every_way(reset, 1);
  out8(reset, 1, 0x06);
  EXPECT_THAT(control.events, IsEmpty());
  out8(reset, 0, 0x06);
  out8(reset, 0, 0x0e);
  EXPECT_THAT(control.events, ElementsAre("reset", "reset"));
}

}  // namespace
}  // namespace lethe
