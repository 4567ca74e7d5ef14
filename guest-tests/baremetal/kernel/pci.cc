#include "kernel/pci.h"

#include "kernel/acpi.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr uint16_t kConfigAddress = 0xcf8;
constexpr uint16_t kConfigData = 0xcfc;
constexpr uint32_t kConfigEnable = 0x80000000;
constexpr uint32_t kBarIo = 0x1;
constexpr uint32_t kBar64 = 0x4;
constexpr uint32_t kBarPrefetchable = 0x8;
constexpr uint16_t kMsixEnable = 0x8000;
constexpr uint16_t kMsixMaskAll = 0x4000;
constexpr uint32_t kMsixEntryMasked = 1;
constexpr uint64_t kMsiAddress = 0xfee00000;
constexpr unsigned kCapabilitiesMax = 48;

uint64_t ecam() {
  static bool asked;
  static uint64_t base;
  if (!asked) {
    asked = true;
    base = boot_info().rsdp == 0 ? 0 : ecam_base(nullptr);
    if (base != 0) map_identity(base, 1 << 20, true);
  }
  return base;
}

void select(const PciFunction& f, uint16_t offset) {
  CHECK(offset < 256);
  out32(kConfigAddress,
        kConfigEnable | (uint32_t{f.slot} << 11) | (uint32_t{f.function} << 8) | (offset & 0xfcu));
}

}  // namespace

uint64_t PciFunction::ecam_address(uint16_t offset) const {
  if (ecam() == 0) return 0;
  return ecam() + (uint64_t{slot} << 15) + (uint64_t{function} << 12) + offset;
}

uint32_t PciFunction::read32_by_ports(uint16_t offset) const {
  select(*this, offset);
  return in32(kConfigData);
}
uint16_t PciFunction::read16_by_ports(uint16_t offset) const {
  select(*this, offset);
  return in16(static_cast<uint16_t>(kConfigData + (offset & 2)));
}
uint8_t PciFunction::read8_by_ports(uint16_t offset) const {
  select(*this, offset);
  return in8(static_cast<uint16_t>(kConfigData + (offset & 3)));
}
void PciFunction::write32_by_ports(uint16_t offset, uint32_t value) const {
  select(*this, offset);
  out32(kConfigData, value);
}

uint8_t PciFunction::read8(uint16_t offset) const {
  return ecam() != 0 ? mmio_read<uint8_t>(ecam_address(offset)) : read8_by_ports(offset);
}
uint16_t PciFunction::read16(uint16_t offset) const {
  return ecam() != 0 ? mmio_read<uint16_t>(ecam_address(offset)) : read16_by_ports(offset);
}
uint32_t PciFunction::read32(uint16_t offset) const {
  return ecam() != 0 ? mmio_read<uint32_t>(ecam_address(offset)) : read32_by_ports(offset);
}
void PciFunction::write8(uint16_t offset, uint8_t value) const {
  if (ecam() != 0) return mmio_write<uint8_t>(ecam_address(offset), value);
  select(*this, offset);
  out8(static_cast<uint16_t>(kConfigData + (offset & 3)), value);
}
void PciFunction::write16(uint16_t offset, uint16_t value) const {
  if (ecam() != 0) return mmio_write<uint16_t>(ecam_address(offset), value);
  select(*this, offset);
  out16(static_cast<uint16_t>(kConfigData + (offset & 2)), value);
}
void PciFunction::write32(uint16_t offset, uint32_t value) const {
  if (ecam() != 0) return mmio_write<uint32_t>(ecam_address(offset), value);
  write32_by_ports(offset, value);
}

PciBar read_bar(const PciFunction& f, unsigned index) {
  const auto offset = static_cast<uint16_t>(kPciBar0 + 4 * index);
  const uint16_t command = f.read16(kPciCommand);
  const uint32_t low = f.read32(offset);
  PciBar bar;
  bar.is_io = (low & kBarIo) != 0;
  bar.is_64bit = !bar.is_io && (low & kBar64) != 0;
  bar.is_prefetchable = !bar.is_io && (low & kBarPrefetchable) != 0;
  f.write16(kPciCommand, static_cast<uint16_t>(command & ~uint16_t{3}));
  f.write32(offset, 0xffffffff);
  const uint32_t mask_bits = bar.is_io ? 0x3 : 0xf;
  uint64_t mask = f.read32(offset) & ~mask_bits;
  f.write32(offset, low);
  bar.address = low & ~mask_bits;
  if (bar.is_64bit) {
    const auto high_offset = static_cast<uint16_t>(offset + 4);
    const uint32_t high = f.read32(high_offset);
    f.write32(high_offset, 0xffffffff);
    mask |= uint64_t{f.read32(high_offset)} << 32;
    f.write32(high_offset, high);
    bar.address |= uint64_t{high} << 32;
  } else if (mask != 0) {
    mask |= 0xffffffff'00000000;
  }
  f.write16(kPciCommand, command);
  bar.size = mask == 0 ? 0 : ~mask + 1;
  return bar;
}

void write_bar_address(const PciFunction& f, unsigned index, uint64_t address, bool is_64bit) {
  const auto offset = static_cast<uint16_t>(kPciBar0 + 4 * index);
  f.write32(offset, static_cast<uint32_t>(address));
  if (is_64bit) f.write32(static_cast<uint16_t>(offset + 4), static_cast<uint32_t>(address >> 32));
}

uint8_t find_capability(const PciFunction& f, uint8_t id, uint8_t after) {
  if ((f.read16(kPciStatus) & kPciStatusCapabilities) == 0) return 0;
  uint8_t at = f.read8(after == 0 ? kPciCapabilities : static_cast<uint16_t>(after + 1));
  for (unsigned i = 0; at != 0; ++i) {
    CHECK(i < kCapabilitiesMax);
    CHECK(at >= 0x40 && at % 4 == 0);
    if (f.read8(at) == id) return at;
    at = f.read8(static_cast<uint16_t>(at + 1));
  }
  return 0;
}

bool Msix::open(const PciFunction& f) {
  function_ = f;
  capability_ = find_capability(f, kPciCapMsix);
  if (capability_ == 0) return false;
  size_ = (f.read16(static_cast<uint16_t>(capability_ + 2)) & 0x7ffu) + 1;
  auto address = [&](uint16_t offset, uint64_t length) {
    const uint32_t where = f.read32(static_cast<uint16_t>(capability_ + offset));
    CHECK((where & 7) < kPciBars);
    const PciBar bar = read_bar(f, where & 7);
    CHECK((where & ~7u) + length <= bar.size);
    map_identity(bar.address, bar.size, true);
    return bar.address + (where & ~7u);
  };
  table_ = address(4, uint64_t{size_} * 16);
  pending_ = address(8, (uint64_t{size_} + 63) / 64 * 8);
  return true;
}

void Msix::enable() { function_.write16(static_cast<uint16_t>(capability_ + 2), kMsixEnable); }
void Msix::disable() { function_.write16(static_cast<uint16_t>(capability_ + 2), 0); }
void Msix::mask_all(bool masked) {
  function_.write16(static_cast<uint16_t>(capability_ + 2),
                    static_cast<uint16_t>(kMsixEnable | (masked ? kMsixMaskAll : 0)));
}

void Msix::route(unsigned entry, uint8_t vector, uint32_t apic_id) {
  CHECK(entry < size_);
  const uint64_t at = table_ + uint64_t{entry} * 16;
  mask(entry, true);
  mmio_write<uint32_t>(at, static_cast<uint32_t>(kMsiAddress | (apic_id << 12)));
  mmio_write<uint32_t>(at + 4, 0);
  mmio_write<uint32_t>(at + 8, vector);
  mask(entry, false);
}

void Msix::mask(unsigned entry, bool masked) {
  mmio_write<uint32_t>(table_ + uint64_t{entry} * 16 + 12, masked ? kMsixEntryMasked : 0);
}

bool Msix::is_pending(unsigned entry) const {
  return ((mmio_read<uint64_t>(pending_ + entry / 64 * 8) >> (entry % 64)) & 1) != 0;
}

}  // namespace kernel
