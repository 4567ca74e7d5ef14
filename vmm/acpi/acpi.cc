#include "vmm/acpi/acpi.h"

#include <cstring>
#include <initializer_list>
#include <numeric>
#include <string_view>
#include <vector>

#include "base/assert.h"
#include "devices/legacy/acpi_power/acpi_power.h"
#include "devices/legacy/ioapic/ioapic.h"
#include "vmm/boot/layout.h"

#include "dsdt.hex"  // made by iasl from dsdt.asl: dsdt_aml_code

namespace lethe {
namespace {

using Bytes = std::vector<uint8_t>;

// Tables are little-endian and packed: written field by field.
template <typename T>
void append(Bytes& table, T value) {
  for (size_t i = 0; i < sizeof(T); ++i)
    table.push_back(static_cast<uint8_t>(uint64_t{value} >> (8 * i)));
}

template <typename T>
void set(Bytes& table, size_t offset, T value) {
  for (size_t i = 0; i < sizeof(T); ++i)
    table[offset + i] = static_cast<uint8_t>(uint64_t{value} >> (8 * i));
}

void append_text(Bytes& table, std::string_view text) {
  table.insert(table.end(), text.begin(), text.end());
}

uint8_t checksum(const uint8_t* bytes, size_t size) {
  return static_cast<uint8_t>(-std::accumulate(bytes, bytes + size, 0));
}

// ACPI 6.4, 5.2.6: the header of every table; length and checksum are set by finish().
Bytes start_table(std::string_view signature, uint8_t revision) {
  Bytes table;
  append_text(table, signature);
  append<uint32_t>(table, 0);  // length
  append<uint8_t>(table, revision);
  append<uint8_t>(table, 0);  // checksum
  append_text(table, "LETHE ");
  append_text(table, "LETHE   ");
  append<uint32_t>(table, 1);
  append_text(table, "LETH");
  append<uint32_t>(table, 1);
  return table;
}

constexpr size_t kLengthAt = 4;
constexpr size_t kChecksumAt = 9;

void finish(Bytes& table) {
  set<uint32_t>(table, kLengthAt, static_cast<uint32_t>(table.size()));
  table[kChecksumAt] = 0;
  table[kChecksumAt] = checksum(table.data(), table.size());
}

// A Generic Address Structure (5.2.3.2) for one byte-wide port.
void set_port(Bytes& table, size_t offset, uint16_t port) {
  set<uint8_t>(table, offset, 1);      // system I/O
  set<uint8_t>(table, offset + 1, 8);  // bits
  set<uint8_t>(table, offset + 2, 0);
  set<uint8_t>(table, offset + 3, 1);  // byte access
  set<uint64_t>(table, offset + 4, port);
}

// 5.2.9. Offsets are those of the table's description there.
Bytes make_fadt(uint64_t dsdt) {
  constexpr size_t kSize = 276;
  constexpr uint16_t kLegacyDevices = 1 << 0, kNoVga = 1 << 2;
  constexpr uint32_t kWbinvd = 1 << 0, kNoFixedPowerButton = 1 << 4, kNoFixedSleepButton = 1 << 5,
                     kResetRegister = 1 << 10, kHardwareReduced = 1 << 20;
  Bytes table = start_table("FACP", 6);
  table.resize(kSize);
  set<uint32_t>(table, 40, static_cast<uint32_t>(dsdt));
  set<uint16_t>(table, 109, kLegacyDevices | kNoVga);
  set<uint32_t>(
      table, 112,
      kWbinvd | kNoFixedPowerButton | kNoFixedSleepButton | kResetRegister | kHardwareReduced);
  set_port(table, 116, kResetPort);
  set<uint8_t>(table, 128, kResetValue);
  set<uint8_t>(table, 131, 4);  // minor version
  set<uint64_t>(table, 140, dsdt);
  set_port(table, 244, kAcpiSleepControlPort);
  set_port(table, 256, kAcpiSleepStatusPort);
  finish(table);
  return table;
}

// 5.2.12.
Bytes make_madt(uint32_t cpus) {
  Bytes table = start_table("APIC", 5);
  append<uint32_t>(table, static_cast<uint32_t>(layout::kLapic));
  append<uint32_t>(table, 0);
  for (uint32_t i = 0; i < cpus; ++i) {
    append<uint8_t>(table, 0);  // processor local APIC
    append<uint8_t>(table, 8);
    append<uint8_t>(table, static_cast<uint8_t>(i));  // UID
    append<uint8_t>(table, static_cast<uint8_t>(i));  // APIC id
    append<uint32_t>(table, 1);                       // enabled
  }
  append<uint8_t>(table, 1);  // I/O APIC
  append<uint8_t>(table, 12);
  append<uint8_t>(table, 0);  // id
  append<uint8_t>(table, 0);
  append<uint32_t>(table, static_cast<uint32_t>(kIoapicAddress));
  append<uint32_t>(table, 0);  // first GSI
  append<uint8_t>(table, 4);   // local APIC NMI
  append<uint8_t>(table, 6);
  append<uint8_t>(table, 0xFF);  // all processors
  append<uint16_t>(table, 0);
  append<uint8_t>(table, 1);  // LINT1
  finish(table);
  return table;
}

// PCI Firmware Specification 3.3, 4.1.2.
Bytes make_mcfg() {
  Bytes table = start_table("MCFG", 1);
  append<uint64_t>(table, 0);
  append<uint64_t>(table, layout::kEcam);
  append<uint16_t>(table, 0);  // segment
  append<uint8_t>(table, 0);   // first bus
  append<uint8_t>(table, 0);   // last bus
  append<uint32_t>(table, 0);
  finish(table);
  return table;
}

void replace_once(Bytes& table, uint64_t mark, uint64_t value) {
  int found = 0;
  for (size_t i = 0; i + sizeof mark <= table.size(); ++i) {
    if (std::memcmp(table.data() + i, &mark, sizeof mark) != 0) continue;
    set<uint64_t>(table, i, value);
    ++found;
  }
  LETHE_ASSERT(found == 1);
}

Bytes make_dsdt(uint64_t memory_bytes) {
  // The marks of dsdt.asl: the 64-bit PCI window's first and last byte.
  constexpr uint64_t kFirstMark = 0x1E7E'0000'0000'0000, kLastMark = 0x1E7E'0003'FFFF'FFFF;
  Bytes table(std::begin(dsdt_aml_code), std::end(dsdt_aml_code));
  const uint64_t start = layout::pci64_start(memory_bytes);
  replace_once(table, kFirstMark, start);
  replace_once(table, kLastMark, start + layout::kPci64Size - 1);
  finish(table);
  return table;
}

class Placer {
 public:
  explicit Placer(const GuestMemory& memory) : x_memory(memory) {}
  uint64_t place(const Bytes& table) {
    const uint64_t at = x_next;
    x_next = (at + table.size() + 15) & ~uint64_t{15};
    LETHE_ASSERT(x_next <= layout::kResetVector && x_memory.write(GuestAddr{at}, table));
    return at;
  }

 private:
  const GuestMemory& x_memory;
  uint64_t x_next = layout::kAcpiTables + 64;  // the RSDP comes first
};

}  // namespace

uint64_t write_acpi_tables(const GuestMemory& memory, uint32_t cpus) {
  Placer placer(memory);
  const uint64_t dsdt = placer.place(make_dsdt(memory.total_bytes()));
  Bytes xsdt = start_table("XSDT", 1);
  append<uint64_t>(xsdt, placer.place(make_fadt(dsdt)));
  append<uint64_t>(xsdt, placer.place(make_madt(cpus)));
  append<uint64_t>(xsdt, placer.place(make_mcfg()));
  finish(xsdt);
  const uint64_t xsdt_at = placer.place(xsdt);

  Bytes rsdp;  // 5.2.5.3
  append_text(rsdp, "RSD PTR ");
  append<uint8_t>(rsdp, 0);
  append_text(rsdp, "LETHE ");
  append<uint8_t>(rsdp, 2);
  append<uint32_t>(rsdp, 0);  // no RSDT
  append<uint32_t>(rsdp, 36);
  append<uint64_t>(rsdp, xsdt_at);
  append<uint32_t>(rsdp, 0);
  rsdp[8] = checksum(rsdp.data(), 20);
  rsdp[32] = checksum(rsdp.data(), rsdp.size());
  LETHE_ASSERT(memory.write(GuestAddr{layout::kAcpiTables}, rsdp));
  return layout::kAcpiTables;
}

}  // namespace lethe
