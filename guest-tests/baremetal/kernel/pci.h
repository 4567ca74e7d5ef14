// PCI configuration space through ECAM and through ports 0xCF8/0xCFC, BARs, capabilities, MSI-X.
// Source: PCI Local Bus specification 3.0, chapter 6; PCI Express base specification,
// section 7.2.2.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kernel {

inline constexpr uint16_t kPciVendorId = 0x00;
inline constexpr uint16_t kPciDeviceId = 0x02;
inline constexpr uint16_t kPciCommand = 0x04;
inline constexpr uint16_t kPciStatus = 0x06;
inline constexpr uint16_t kPciBar0 = 0x10;
inline constexpr uint16_t kPciCapabilities = 0x34;
inline constexpr uint16_t kPciCommandMemory = 0x2;
inline constexpr uint16_t kPciCommandBusMaster = 0x4;
inline constexpr uint16_t kPciStatusCapabilities = 0x10;
inline constexpr uint8_t kPciCapMsix = 0x11;
inline constexpr uint8_t kPciCapVendor = 0x09;
inline constexpr unsigned kPciSlots = 32;
inline constexpr unsigned kPciBars = 6;
inline constexpr uint16_t kPciNoDevice = 0xffff;

// One function on bus 0. Offsets are bytes; an access has exactly the given width.
struct PciFunction {
  uint8_t slot = 0;
  uint8_t function = 0;

  // Through ECAM where there is an MCFG, else through the ports.
  uint8_t read8(uint16_t offset) const;
  uint16_t read16(uint16_t offset) const;
  uint32_t read32(uint16_t offset) const;
  void write8(uint16_t offset, uint8_t value) const;
  void write16(uint16_t offset, uint16_t value) const;
  void write32(uint16_t offset, uint32_t value) const;

  uint32_t read32_by_ports(uint16_t offset) const;
  uint16_t read16_by_ports(uint16_t offset) const;
  uint8_t read8_by_ports(uint16_t offset) const;
  void write32_by_ports(uint16_t offset, uint32_t value) const;
  // 0 without an MCFG.
  uint64_t ecam_address(uint16_t offset) const;

  bool exists() const { return read16(kPciVendorId) != kPciNoDevice; }
};

struct PciBar {
  uint64_t address = 0;
  uint64_t size = 0;  // 0: not there
  bool is_64bit = false;
  bool is_io = false;
  bool is_prefetchable = false;
};

// Sizes the BAR with memory decoding off, and restores it.
PciBar read_bar(const PciFunction& f, unsigned index);
void write_bar_address(const PciFunction& f, unsigned index, uint64_t address, bool is_64bit);

// The offset of the next capability with this id after `after` (0: from the start), or 0. A list
// that loops fails a CHECK.
uint8_t find_capability(const PciFunction& f, uint8_t id, uint8_t after = 0);

// The MSI-X table of one function.
class Msix {
 public:
  // False if the function has no MSI-X.
  bool open(const PciFunction& f);
  unsigned size() const { return size_; }
  uint64_t table() const { return table_; }
  uint64_t pending() const { return pending_; }
  void enable();
  void disable();
  void mask_all(bool masked);
  // Entry -> interrupt `vector` at the CPU with this APIC id; unmasks the entry.
  void route(unsigned entry, uint8_t vector, uint32_t apic_id);
  void mask(unsigned entry, bool masked);
  bool is_pending(unsigned entry) const;

 private:
  PciFunction function_;
  uint8_t capability_ = 0;
  unsigned size_ = 0;
  uint64_t table_ = 0;
  uint64_t pending_ = 0;
};

}  // namespace kernel
