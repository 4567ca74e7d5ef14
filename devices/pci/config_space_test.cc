#include "devices/pci/config_space.h"

#include <gtest/gtest.h>

namespace lethe {
namespace {

constexpr PciIdentity kIdentity{.vendor = 0x1af4,
                                .device = 0x1042,
                                .revision = 1,
                                .class_code = 0x01'80'00,
                                .subsystem_vendor = 0x1af4,
                                .subsystem = 0x40};

template <typename T>
T read(const PciConfigSpace& space, uint16_t offset) {
  std::array<uint8_t, sizeof(T)> bytes;
  space.read(offset, bytes);
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

template <typename T>
void write(PciConfigSpace& space, uint16_t offset, T value) {
  std::array<uint8_t, sizeof(T)> bytes;
  std::memcpy(bytes.data(), &value, sizeof value);
  space.write(offset, bytes);
}

TEST(PciConfigSpace, shows_identity_at_the_header_offsets) {
  const PciConfigSpace space(kIdentity);
  EXPECT_EQ(read<uint32_t>(space, PCI_VENDOR_ID), 0x1042'1af4U);
  EXPECT_EQ(read<uint32_t>(space, PCI_CLASS_REVISION), 0x0180'0001U);
  EXPECT_EQ(read<uint8_t>(space, PCI_HEADER_TYPE), 0);
  EXPECT_EQ(read<uint32_t>(space, PCI_SUBSYSTEM_VENDOR_ID), 0x0040'1af4U);
  EXPECT_EQ(read<uint8_t>(space, PCI_INTERRUPT_PIN), 0);
}

TEST(PciConfigSpace, keeps_read_only_bits_whatever_is_written) {
  PciConfigSpace space(kIdentity);
  for (uint16_t offset = 0; offset < PciConfigSpace::kSize; offset += 4)
    write<uint32_t>(space, offset, 0xffff'ffff);
  EXPECT_EQ(read<uint32_t>(space, PCI_VENDOR_ID), 0x1042'1af4U);
  EXPECT_EQ(read<uint16_t>(space, PCI_COMMAND),
            PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
  EXPECT_EQ(read<uint16_t>(space, PCI_STATUS), 0);
  EXPECT_EQ(read<uint32_t>(space, PCI_BASE_ADDRESS_0), 0U);  // no BAR declared
  EXPECT_EQ(read<uint8_t>(space, PCI_INTERRUPT_LINE), 0xff);
}

TEST(PciConfigSpace, writes_of_any_alignment_change_only_their_bytes) {
  PciConfigSpace space(kIdentity);
  write<uint8_t>(space, PCI_INTERRUPT_LINE, 0x5a);
  write<uint16_t>(space, PCI_INTERRUPT_LINE - 1, 0x7700);  // crosses a dword's start
  EXPECT_EQ(read<uint8_t>(space, PCI_INTERRUPT_LINE), 0x77);
  EXPECT_EQ(read<uint16_t>(space, PCI_INTERRUPT_LINE - 1), 0x7700);
}

TEST(PciConfigSpace, reads_zeros_and_ignores_writes_beyond_256_bytes) {
  PciConfigSpace space(kIdentity);
  write<uint32_t>(space, 0x100, 0xffff'ffff);
  write<uint64_t>(space, 0xffc, ~0ULL);
  EXPECT_EQ(read<uint32_t>(space, 0x100), 0U);
  EXPECT_EQ(read<uint64_t>(space, 0xff8), 0U);
  write<uint64_t>(space, 0xfc, ~0ULL);  // crosses the end
  EXPECT_EQ(read<uint64_t>(space, 0xfc), 0U);
}

TEST(PciConfigSpace, answers_32_bit_bar_sizing) {
  PciConfigSpace space(kIdentity);
  space.add_bar(1, 0x8000, PciBarKind::kMemory32);
  write<uint32_t>(space, PCI_BASE_ADDRESS_1, 0xffff'ffff);
  EXPECT_EQ(read<uint32_t>(space, PCI_BASE_ADDRESS_1), 0xffff'8000U);
  write<uint32_t>(space, PCI_BASE_ADDRESS_1, 0xc123'4567);
  EXPECT_EQ(read<uint32_t>(space, PCI_BASE_ADDRESS_1), 0xc123'0000U);
  EXPECT_EQ(space.bar_address(1), 0xc123'0000U);
}

TEST(PciConfigSpace, answers_64_bit_bar_sizing_in_two_registers) {
  PciConfigSpace space(kIdentity);
  space.add_bar(2, 8ULL << 30, PciBarKind::kMemory64, true);
  constexpr uint32_t kType = PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH;
  write<uint32_t>(space, PCI_BASE_ADDRESS_2, 0xffff'ffff);
  write<uint32_t>(space, PCI_BASE_ADDRESS_3, 0xffff'ffff);
  EXPECT_EQ(read<uint32_t>(space, PCI_BASE_ADDRESS_2), kType);
  EXPECT_EQ(read<uint32_t>(space, PCI_BASE_ADDRESS_3), 0xffff'fffeU);
  space.set_bar_address(2, 64ULL << 30);
  EXPECT_EQ(space.bar_address(2), 64ULL << 30);
  EXPECT_EQ(read<uint32_t>(space, PCI_BASE_ADDRESS_2), kType);
}

TEST(PciConfigSpace, links_capabilities_at_aligned_offsets) {
  PciConfigSpace space(kIdentity);
  const std::array<uint8_t, 3> first{1, 2, 3};
  const std::array<uint8_t, 2> second{4, 5};
  const std::array<uint8_t, 2> writable{0xf0, 0};
  const uint8_t at = space.add_capability(0x09, first);
  const uint8_t next = space.add_capability(0x11, second, writable);
  EXPECT_EQ(at, 0x40);
  EXPECT_EQ(next, 0x48);  // 5 bytes, rounded up to a dword
  EXPECT_EQ(read<uint16_t>(space, PCI_STATUS), PCI_STATUS_CAP_LIST);
  EXPECT_EQ(read<uint8_t>(space, PCI_CAPABILITY_LIST), at);
  EXPECT_EQ(read<uint32_t>(space, at), 0x0201'4809U);
  EXPECT_EQ(read<uint32_t>(space, next), 0x0504'0011U);
  write<uint32_t>(space, next, 0xffff'ffff);
  EXPECT_EQ(read<uint32_t>(space, next), 0x05f4'0011U);
}

}  // namespace
}  // namespace lethe
