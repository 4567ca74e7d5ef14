// ACPI tables as a reader that trusts nothing: every table found has its checksum verified.
// Source: ACPI specification 6.5, sections 5.2.5 to 5.2.12; PCI Firmware specification 3.3, table
// 4-2.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kernel {

struct [[gnu::packed]] AcpiHeader {
  char signature[4];
  uint32_t length;
  uint8_t revision;
  uint8_t checksum;
  char oem_id[6];
  char oem_table_id[8];
  uint32_t oem_revision;
  uint32_t creator_id;
  uint32_t creator_revision;
};
static_assert(sizeof(AcpiHeader) == 36);

struct [[gnu::packed]] AcpiGenericAddress {
  uint8_t space_id;  // 1: system I/O
  uint8_t bit_width;
  uint8_t bit_offset;
  uint8_t access_size;
  uint64_t address;
};

// Only what guests look at; the rest is padding. Offsets from ACPI 6.5, table 5.9.
struct [[gnu::packed]] AcpiFadt {
  AcpiHeader header;
  uint8_t skipped1[112 - 36];
  uint32_t flags;
  AcpiGenericAddress reset_reg;
  uint8_t reset_value;
  uint8_t skipped2[140 - 129];
  uint64_t x_dsdt;
  uint8_t skipped3[244 - 148];
  AcpiGenericAddress sleep_control_reg;
  AcpiGenericAddress sleep_status_reg;
};
static_assert(offsetof(AcpiFadt, sleep_control_reg) == 244);
static_assert(offsetof(AcpiFadt, x_dsdt) == 140);

inline constexpr uint32_t kFadtResetRegSupported = 1u << 10;
inline constexpr uint32_t kFadtHwReduced = 1u << 20;

inline constexpr size_t kCpusMax = 64;

// What the MADT says.
struct Madt {
  uint32_t lapic_address = 0;
  size_t cpu_count = 0;  // enabled ones
  uint32_t apic_ids[kCpusMax] = {};
  size_t ioapic_count = 0;
  uint32_t ioapic_address = 0;
  uint32_t ioapic_gsi_base = 0;
};

// The table, or null. Checks RSDP and XSDT on the way; a bad checksum fails a CHECK.
const AcpiHeader* find_acpi_table(const char* signature);
const AcpiHeader* check_acpi_table(uint64_t address);
Madt read_madt();
// ECAM address of segment 0, bus 0; 0 without an MCFG. `last_bus` may be null.
uint64_t ecam_base(unsigned* last_bus);

}  // namespace kernel
