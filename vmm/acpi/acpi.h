// The ACPI tables (ACPI 6.4): hardware-reduced (3.11.1, 4.1), so that no fixed-function registers,
// SCI or PM timer have to exist. Sleep and reset go through ports, events through a generic event
// device. dsdt.asl holds the devices.
#pragma once

#include <cstdint>

#include "memory/guest_memory.h"

namespace lethe {

// Writes RSDP, XSDT, FADT, MADT, MCFG and DSDT to layout::kAcpiTables and returns the address of
// the RSDP. `cpus`: 1 to 64. Memory below 1 MiB must exist.
[[nodiscard]] uint64_t write_acpi_tables(const GuestMemory& memory, uint32_t cpus);

}  // namespace lethe
