#include "kernel/acpi.h"

#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr uint32_t kTableLengthMax = 1 << 20;
constexpr size_t kRsdpLength = 36;

// Tables are packed and lie anywhere: read field by field.
template <typename T>
T read_at(uint64_t address) {
  T value;
  memcpy(&value, reinterpret_cast<const void*>(address), sizeof(T));
  return value;
}

uint8_t sum(uint64_t address, size_t length) {
  uint8_t total = 0;
  for (size_t i = 0; i < length; ++i) {
    total = static_cast<uint8_t>(total + *reinterpret_cast<const uint8_t*>(address + i));
  }
  return total;
}

uint64_t xsdt_address() {
  const uint64_t rsdp = boot_info().rsdp;
  CHECK(rsdp != 0);
  CHECK(memcmp(reinterpret_cast<const void*>(rsdp), "RSD PTR ", 8) == 0);
  CHECK_EQ(sum(rsdp, 20), 0);
  if (read_at<uint8_t>(rsdp + 15) < 2) return 0;  // revision 0 has no XSDT
  CHECK_EQ(read_at<uint32_t>(rsdp + 20), kRsdpLength);
  CHECK_EQ(sum(rsdp, kRsdpLength), 0);
  return read_at<uint64_t>(rsdp + 24);
}

void add_madt_cpu(Madt& madt, uint32_t id, uint32_t flags) {
  if ((flags & 1) == 0) return;
  CHECK(madt.cpu_count < kCpusMax);
  madt.apic_ids[madt.cpu_count++] = id;
}

}  // namespace

const AcpiHeader* check_acpi_table(uint64_t address) {
  CHECK(address != 0);
  const auto length = read_at<uint32_t>(address + offsetof(AcpiHeader, length));
  CHECK(length >= sizeof(AcpiHeader));
  CHECK(length <= kTableLengthMax);
  CHECK_EQ(sum(address, length), 0);
  return reinterpret_cast<const AcpiHeader*>(address);
}

const AcpiHeader* find_acpi_table(const char* signature) {
  const uint64_t xsdt = xsdt_address();
  const bool wide = xsdt != 0;
  const uint64_t root = wide ? xsdt : read_at<uint32_t>(boot_info().rsdp + 16);
  const AcpiHeader* header = check_acpi_table(root);
  CHECK(memcmp(header->signature, wide ? "XSDT" : "RSDT", 4) == 0);
  const size_t entry_size = wide ? 8 : 4;
  CHECK_EQ((header->length - sizeof(AcpiHeader)) % entry_size, 0);
  for (uint64_t at = root + sizeof(AcpiHeader); at < root + header->length; at += entry_size) {
    const uint64_t table = wide ? read_at<uint64_t>(at) : read_at<uint32_t>(at);
    if (memcmp(reinterpret_cast<const void*>(table), signature, 4) == 0)
      return check_acpi_table(table);
  }
  return nullptr;
}

Madt read_madt() {
  const AcpiHeader* header = find_acpi_table("APIC");
  CHECK(header != nullptr);
  const auto base = reinterpret_cast<uint64_t>(header);
  Madt madt;
  madt.lapic_address = read_at<uint32_t>(base + 36);
  for (uint64_t at = base + 44; at < base + header->length;) {
    const auto type = read_at<uint8_t>(at);
    const auto length = read_at<uint8_t>(at + 1);
    CHECK(length >= 2);
    CHECK(at + length <= base + header->length);
    if (type == 0) add_madt_cpu(madt, read_at<uint8_t>(at + 3), read_at<uint32_t>(at + 4));
    if (type == 9) add_madt_cpu(madt, read_at<uint32_t>(at + 4), read_at<uint32_t>(at + 8));
    if (type == 1) {
      ++madt.ioapic_count;
      madt.ioapic_address = read_at<uint32_t>(at + 4);
      madt.ioapic_gsi_base = read_at<uint32_t>(at + 8);
    }
    at += length;
  }
  return madt;
}

uint64_t ecam_base(unsigned* last_bus) {
  const AcpiHeader* header = find_acpi_table("MCFG");
  if (header == nullptr) return 0;
  CHECK(header->length >= 60);
  const auto entry = reinterpret_cast<uint64_t>(header) + 44;
  CHECK_EQ(read_at<uint16_t>(entry + 8), 0);
  CHECK_EQ(read_at<uint8_t>(entry + 10), 0);
  if (last_bus != nullptr) *last_bus = read_at<uint8_t>(entry + 11);
  return read_at<uint64_t>(entry);
}

}  // namespace kernel
