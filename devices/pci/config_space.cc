#include "devices/pci/config_space.h"

#include <algorithm>
#include <bit>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr uint16_t bar_register(unsigned index) {
  return static_cast<uint16_t>(PCI_BASE_ADDRESS_0 + 4 * index);
}

}  // namespace

PciConfigSpace::PciConfigSpace(const PciIdentity& identity) {
  store<uint16_t>(PCI_VENDOR_ID, identity.vendor);
  store<uint16_t>(PCI_DEVICE_ID, identity.device);
  // One dword: revision in byte 0, the class in bytes 1 to 3.
  store<uint32_t>(PCI_CLASS_REVISION, identity.class_code << 8 | identity.revision);
  store<uint8_t>(PCI_HEADER_TYPE, PCI_HEADER_TYPE_NORMAL);
  store<uint16_t>(PCI_SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor);
  store<uint16_t>(PCI_SUBSYSTEM_ID, identity.subsystem);
  // PCI_INTERRUPT_PIN stays 0: no INTx. Status never shows an error, so has no write-1-to-clear
  // bit.
  allow_writes<uint16_t>(PCI_COMMAND,
                         PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
  allow_writes<uint8_t>(PCI_CACHE_LINE_SIZE, 0xff);
  allow_writes<uint8_t>(PCI_INTERRUPT_LINE, 0xff);
}

void PciConfigSpace::add_bar(unsigned index, uint64_t size, PciBarKind kind, bool prefetchable) {
  const unsigned registers = kind == PciBarKind::kMemory64 ? 2 : 1;
  LETHE_ASSERT(index + registers <= kBars);
  LETHE_ASSERT(std::has_single_bit(size) && size >= 4096);
  LETHE_ASSERT(kind == PciBarKind::kMemory64 || size <= 0x8000'0000U);
  for (unsigned i = index; i < index + registers; ++i)
    LETHE_ASSERT(x_bars[i].size == 0 && load<uint32_t>(bar_register(i)) == 0);
  LETHE_ASSERT(index == 0 || x_bars[index - 1].kind != PciBarKind::kMemory64);
  x_bars[index] = {size, kind};
  uint32_t type = PCI_BASE_ADDRESS_SPACE_MEMORY;
  if (kind == PciBarKind::kMemory64) type |= PCI_BASE_ADDRESS_MEM_TYPE_64;
  if (prefetchable) type |= PCI_BASE_ADDRESS_MEM_PREFETCH;
  store(bar_register(index), type);
  // Only the bits above the size can be written: all ones written and read back give the size
  // (6.2.5.1).
  const uint64_t writable = ~(size - 1);
  allow_writes(bar_register(index), static_cast<uint32_t>(writable));
  if (kind == PciBarKind::kMemory64)
    allow_writes(bar_register(index + 1), static_cast<uint32_t>(writable >> 32));
}

bool PciConfigSpace::bar_prefetchable(unsigned index) const {
  return (load<uint32_t>(bar_register(index)) & PCI_BASE_ADDRESS_MEM_PREFETCH) != 0;
}

uint64_t PciConfigSpace::bar_address(unsigned index) const {
  const auto low = load<uint32_t>(bar_register(index));
  uint64_t address = low & static_cast<uint32_t>(PCI_BASE_ADDRESS_MEM_MASK);
  if (x_bars[index].kind == PciBarKind::kMemory64)
    address |= static_cast<uint64_t>(load<uint32_t>(bar_register(index + 1))) << 32;
  return address;
}

void PciConfigSpace::set_bar_address(unsigned index, uint64_t address) {
  LETHE_ASSERT(x_bars[index].size != 0 && address % x_bars[index].size == 0);
  std::array<uint8_t, 8> bytes{};
  std::memcpy(bytes.data(), &address, sizeof address);
  const bool wide = x_bars[index].kind == PciBarKind::kMemory64;
  LETHE_ASSERT(wide || address <= UINT32_MAX);
  write(bar_register(index), std::span(bytes).first(wide ? 8 : 4));
}

uint8_t PciConfigSpace::add_capability(uint8_t id, std::span<const uint8_t> body,
                                       std::span<const uint8_t> writable) {
  LETHE_ASSERT(writable.empty() || writable.size() == body.size());
  const uint16_t offset = x_capabilities_end;
  const size_t end = offset + 2 + body.size();
  LETHE_ASSERT(end <= kSize);
  x_bytes[offset] = id;
  std::ranges::copy(body, x_bytes.begin() + offset + 2);
  std::ranges::copy(writable, x_writable.begin() + offset + 2);
  x_bytes[x_last_next] = static_cast<uint8_t>(offset);
  x_last_next = static_cast<uint16_t>(offset + 1);
  // Capabilities start at multiples of 4 (6.7).
  x_capabilities_end = static_cast<uint16_t>((end + 3) & ~size_t{3});
  store<uint16_t>(PCI_STATUS, load<uint16_t>(PCI_STATUS) | PCI_STATUS_CAP_LIST);
  return static_cast<uint8_t>(offset);
}

void PciConfigSpace::read(uint16_t offset, std::span<uint8_t> data) const {
  for (size_t i = 0; i < data.size(); ++i)
    data[i] = offset + i < kSize ? x_bytes[offset + i] : uint8_t{0};
}

void PciConfigSpace::write(uint16_t offset, std::span<const uint8_t> data) {
  for (size_t i = 0; i < data.size() && offset + i < kSize; ++i) {
    const uint8_t writable = x_writable[offset + i];
    uint8_t& byte = x_bytes[offset + i];
    byte = static_cast<uint8_t>((byte & ~writable) | (data[i] & writable));
  }
}

}  // namespace lethe
