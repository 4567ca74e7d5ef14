#include "kernel/apic.h"

#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/traps.h"

namespace kernel {
namespace {

constexpr uint32_t kMsrApicBase = 0x1b;
constexpr uint64_t kApicBaseEnable = 1u << 11;
constexpr uint64_t kApicBaseX2 = 1u << 10;
constexpr uint32_t kMsrTscDeadline = 0x6e0;
constexpr uint32_t kMsrX2apic = 0x800;

// Offsets in the xAPIC page; an x2APIC register is MSR 0x800 + offset / 16.
constexpr uint32_t kRegId = 0x20;
constexpr uint32_t kRegEoi = 0xb0;
constexpr uint32_t kRegSpurious = 0xf0;
constexpr uint32_t kRegIcr = 0x300;
constexpr uint32_t kRegIcrHigh = 0x310;
constexpr uint32_t kRegLvtTimer = 0x320;
constexpr uint32_t kRegTimerInitial = 0x380;
constexpr uint32_t kRegTimerDivide = 0x3e0;

constexpr uint32_t kSpuriousEnable = 1u << 8;
constexpr uint32_t kIcrPending = 1u << 12;
constexpr uint32_t kIcrAssert = 1u << 14;
constexpr uint32_t kIcrInit = 5u << 8;
constexpr uint32_t kIcrStartup = 6u << 8;
constexpr uint32_t kLvtMasked = 1u << 16;
constexpr uint32_t kLvtPeriodic = 1u << 17;
constexpr uint32_t kLvtTscDeadline = 2u << 17;
constexpr uint32_t kDivideBy16 = 3;

constexpr uint32_t kIoapicVersion = 1;
constexpr uint32_t kIoapicRedirection = 0x10;
constexpr uint32_t kIoapicMasked = 1u << 16;

bool x2apic_on;

uint32_t lapic_read(uint32_t reg) {
  if (x2apic_on) return static_cast<uint32_t>(read_msr(kMsrX2apic + reg / 16));
  return mmio_read<uint32_t>(kLapicAddress + reg);
}

void lapic_write(uint32_t reg, uint32_t value) {
  if (x2apic_on) {
    write_msr(kMsrX2apic + reg / 16, value);
  } else {
    mmio_write<uint32_t>(kLapicAddress + reg, value);
  }
}

void send_command(uint32_t apic_id, uint32_t command) {
  if (x2apic_on) {
    write_msr(kMsrX2apic + kRegIcr / 16, (uint64_t{apic_id} << 32) | command);
    return;
  }
  lapic_write(kRegIcrHigh, apic_id << 24);
  lapic_write(kRegIcr, command);
  CHECK_SOON((lapic_read(kRegIcr) & kIcrPending) == 0);
}

void timer_start(uint32_t lvt, uint32_t count) {
  lapic_write(kRegTimerDivide, kDivideBy16);
  lapic_write(kRegLvtTimer, lvt);
  lapic_write(kRegTimerInitial, count);
}

uint32_t ioapic_read(uint32_t reg) {
  mmio_write<uint32_t>(kIoapicAddress, reg);
  return mmio_read<uint32_t>(kIoapicAddress + 0x10);
}

void ioapic_write(uint32_t reg, uint32_t value) {
  mmio_write<uint32_t>(kIoapicAddress, reg);
  mmio_write<uint32_t>(kIoapicAddress + 0x10, value);
}

}  // namespace

bool x2apic_supported() { return (cpuid(1).ecx & (1u << 21)) != 0; }
bool tsc_deadline_supported() { return (cpuid(1).ecx & (1u << 24)) != 0; }

void lapic_init(bool x2apic) {
  out8(0x21, 0xff);
  out8(0xa1, 0xff);
  uint64_t base = read_msr(kMsrApicBase) | kApicBaseEnable;
  CHECK_EQ(base & ~uint64_t{0xfff}, kLapicAddress);
  if (x2apic) {
    CHECK(x2apic_supported());
    base |= kApicBaseX2;
  }
  write_msr(kMsrApicBase, base);
  x2apic_on = (base & kApicBaseX2) != 0;
  lapic_write(kRegSpurious, kSpuriousEnable | kVectorSpurious);
}

uint32_t lapic_id() {
  const uint32_t id = lapic_read(kRegId);
  return x2apic_on ? id : id >> 24;
}

void lapic_eoi() { lapic_write(kRegEoi, 0); }

void lapic_send_ipi(uint32_t apic_id, uint8_t vector) {
  send_command(apic_id, kIcrAssert | vector);
}
void lapic_send_init(uint32_t apic_id) { send_command(apic_id, kIcrAssert | kIcrInit); }
void lapic_send_startup(uint32_t apic_id, uint8_t page) {
  send_command(apic_id, kIcrAssert | kIcrStartup | page);
}

void lapic_timer_oneshot(uint8_t vector, uint32_t count) { timer_start(vector, count); }
void lapic_timer_periodic(uint8_t vector, uint32_t count) {
  timer_start(vector | kLvtPeriodic, count);
}
void lapic_timer_tsc_deadline(uint8_t vector, uint64_t tsc) {
  lapic_write(kRegLvtTimer, vector | kLvtTscDeadline);
  full_fence();  // Intel SDM 11.5.4.1: the LVT write must be done before the MSR's
  write_msr(kMsrTscDeadline, tsc);
}
void lapic_timer_stop() {
  lapic_write(kRegTimerInitial, 0);
  lapic_write(kRegLvtTimer, kLvtMasked);
}

unsigned ioapic_pin_count() { return ((ioapic_read(kIoapicVersion) >> 16) & 0xff) + 1; }

void ioapic_route(unsigned gsi, uint8_t vector, uint32_t apic_id) {
  CHECK(gsi < ioapic_pin_count());
  ioapic_write(kIoapicRedirection + 2 * gsi + 1, apic_id << 24);
  ioapic_write(kIoapicRedirection + 2 * gsi, vector);
}

void ioapic_mask(unsigned gsi) { ioapic_write(kIoapicRedirection + 2 * gsi, kIoapicMasked); }

}  // namespace kernel
