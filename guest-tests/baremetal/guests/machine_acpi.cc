#include "guests/machine.h"
#include "kernel/acpi.h"
#include "kernel/apic.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"

using namespace kernel;

namespace machine {
namespace {

constexpr uint64_t kEcamAddress = 0xe0000000;

bool contains(const AcpiHeader* table, const void* bytes, size_t size) {
  auto* p = reinterpret_cast<const char*>(table);
  for (size_t i = sizeof(AcpiHeader); i + size <= table->length; ++i) {
    if (memcmp(p + i, bytes, size) == 0) return true;
  }
  return false;
}

void check_io_register(const AcpiGenericAddress& reg, uint64_t port) {
  CHECK_EQ(reg.space_id, 1);
  CHECK_EQ(reg.bit_width, 8);
  CHECK_EQ(reg.address, port);
}

}  // namespace

// The tables are whole, and say what the machine is (the numbers here are Lethe's contract).
void acpi() {
  const Madt madt = read_madt();
  CHECK_EQ(madt.lapic_address, kLapicAddress);
  CHECK_EQ(madt.cpu_count, option_number("cpus", 1));
  for (size_t i = 0; i < madt.cpu_count; ++i) {
    for (size_t j = 0; j < i; ++j) CHECK(madt.apic_ids[i] != madt.apic_ids[j]);
  }
  CHECK_EQ(madt.ioapic_count, 1);
  CHECK_EQ(madt.ioapic_address, kIoapicAddress);
  CHECK_EQ(madt.ioapic_gsi_base, 0);

  auto* fadt = reinterpret_cast<const AcpiFadt*>(find_acpi_table("FACP"));
  CHECK(fadt != nullptr);
  CHECK(fadt->header.revision >= 5);
  CHECK(fadt->header.length >= sizeof(AcpiFadt));
  CHECK((fadt->flags & kFadtHwReduced) != 0);
  CHECK((fadt->flags & kFadtResetRegSupported) != 0);
  check_io_register(fadt->reset_reg, 0xcf9);
  CHECK_EQ(fadt->reset_value, 0x06);
  check_io_register(fadt->sleep_control_reg, 0x600);
  check_io_register(fadt->sleep_status_reg, 0x601);

  const AcpiHeader* dsdt = check_acpi_table(fadt->x_dsdt);
  CHECK(memcmp(dsdt->signature, "DSDT", 4) == 0);
  static const uint8_t power_button[] = {0x41, 0xd0, 0x0c, 0x0c};  // EISAID("PNP0C0C")
  CHECK(contains(dsdt, power_button, sizeof(power_button)));
  CHECK(contains(dsdt, "ACPI0013", 8));
  CHECK(contains(dsdt, "QEMU0001", 8));
  CHECK(contains(dsdt, "_S5_", 4));

  unsigned last_bus = 99;
  CHECK_EQ(ecam_base(&last_bus), kEcamAddress);
  CHECK_EQ(last_bus, 0);
}

// Registers that are only read here: the clock tells a date, nothing pretends to be asleep, no
// event is pending, and ports where nothing is read as all ones and take any write.
void legacy_ports() {
  auto cmos = [](uint8_t index) {
    out8(0x70, index);
    return in8(0x71);
  };
  CHECK_EQ(cmos(0x0d) & 0x80, 0x80);  // MC146818: valid RAM and time
  const bool binary = (cmos(0x0b) & 0x04) != 0;
  auto number = [&](uint8_t index) -> unsigned {
    const uint8_t v = cmos(index);
    return binary ? v : (v >> 4) * 10u + (v & 15u);
  };
  CHECK(number(0) < 60);
  CHECK(number(2) < 60);
  CHECK(number(7) >= 1 && number(7) <= 31);
  CHECK(number(8) >= 1 && number(8) <= 12);
  CHECK(number(9) >= 20 && number(9) < 100);
  CHECK_EQ(in8(0x601) & 0x80, 0);
  CHECK_EQ(in8(0x604), 0);
  CHECK_EQ(in8(0x2f0), 0xff);
  CHECK_EQ(in16(0x2f0), 0xffff);
  CHECK_EQ(in32(0x2f0), 0xffffffff);
  out8(0x2f0, 1);
  out32(0x2f0, 1);
  // Memory addresses where nothing is, too.
  CHECK_EQ(mmio_read<uint32_t>(0xfd000000), 0xffffffff);
  mmio_write<uint32_t>(0xfd000000, 1);
}

}  // namespace machine
