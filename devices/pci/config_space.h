// The configuration space of a type-0 PCI function: 256 bytes, which of their bits the guest may
// write, base address registers and the capability list (PCI Local Bus 3.0, chapter 6).
//
// Plain data: no lock, no side effects. PciFunction owns one and acts on what was written.
#pragma once

#include <linux/pci_regs.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace lethe {

struct PciIdentity {
  uint16_t vendor = 0;
  uint16_t device = 0;
  uint8_t revision = 0;
  uint32_t class_code = 0;  // 24 bits: base class, subclass, programming interface
  uint16_t subsystem_vendor = 0;
  uint16_t subsystem = 0;
};

enum class PciBarKind : uint8_t { kMemory32, kMemory64 };  // kMemory64 takes two registers

class PciConfigSpace {
 public:
  static constexpr uint16_t kSize = 256;     // what the function has
  static constexpr uint16_t kWindow = 4096;  // what ECAM shows of it
  static constexpr unsigned kBars = PCI_STD_NUM_BARS;

  explicit PciConfigSpace(const PciIdentity& identity);

  // Declares a memory BAR. `size`: bytes, a power of two from 4096 up, so that two BARs never share
  // a page; up to 2 GiB if 32 bit. A programmer error otherwise, as is an index in use.
  void add_bar(unsigned index, uint64_t size, PciBarKind kind, bool prefetchable = false);
  [[nodiscard]] uint64_t bar_size(unsigned index) const { return x_bars[index].size; }
  [[nodiscard]] PciBarKind bar_kind(unsigned index) const { return x_bars[index].kind; }
  [[nodiscard]] bool bar_prefetchable(unsigned index) const;
  // The address in the register(s), whatever was written there; a multiple of the size.
  [[nodiscard]] uint64_t bar_address(unsigned index) const;
  void set_bar_address(unsigned index, uint64_t address);

  // Appends a capability: `body` follows the two bytes of id and next pointer; `writable` (empty,
  // or as long) has a 1 for each bit of it that the guest may write. Returns the offset of the id
  // byte. A programmer error when 256 bytes do not hold it.
  uint8_t add_capability(uint8_t id, std::span<const uint8_t> body,
                         std::span<const uint8_t> writable = {});

  // The guest's accesses: any offset below kWindow, any size up to its end. From kSize on it reads
  // zeros (no extended capabilities: PCI Express Base 5.0, 7.6.1) and ignores writes.
  void read(uint16_t offset, std::span<uint8_t> data) const;
  void write(uint16_t offset, std::span<const uint8_t> data);

  // All of it, for a snapshot: written back with write(0, ...) it gives the same space.
  [[nodiscard]] std::span<const uint8_t> bytes() const { return x_bytes; }

  [[nodiscard]] bool memory_decode() const {
    return (load<uint16_t>(PCI_COMMAND) & PCI_COMMAND_MEMORY) != 0;
  }

  // Registers by the device's side, past the masks. `offset` + size is within kSize.
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  [[nodiscard]] T load(uint16_t offset) const {
    T value;
    std::memcpy(&value, &x_bytes[offset], sizeof value);
    return value;
  }
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void store(uint16_t offset, const T& value) {
    std::memcpy(&x_bytes[offset], &value, sizeof value);
  }

 private:
  struct Bar {
    uint64_t size = 0;  // 0: there is none
    PciBarKind kind = PciBarKind::kMemory32;
  };
  template <typename T>
  void allow_writes(uint16_t offset, T bits) {
    std::memcpy(&x_writable[offset], &bits, sizeof bits);
  }

  std::array<uint8_t, kSize> x_bytes{};
  std::array<uint8_t, kSize> x_writable{};  // a 1 for each bit that the guest may write
  std::array<Bar, kBars> x_bars{};
  uint16_t x_last_next = PCI_CAPABILITY_LIST;  // where the next capability is linked in
  uint16_t x_capabilities_end = PCI_STD_HEADER_SIZEOF;
};

}  // namespace lethe
