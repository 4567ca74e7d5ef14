#include "guests/machine.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/pci.h"

using namespace kernel;

namespace machine {
namespace {

constexpr uint16_t kPciClass = 0x0a;
constexpr uint16_t kPciHeaderType = 0x0e;
constexpr uint16_t kClassHostBridge = 0x0600;
constexpr uint64_t kWindow32Begin = 0xc0000000;
constexpr uint64_t kWindow32End = 0xe0000000;
constexpr size_t kBarsMax = 64;

// Functions answer at function 0 of a slot only, as Lethe places them.
template <typename F>
unsigned for_each_device(F f) {
  unsigned count = 0;
  for (uint8_t slot = 0; slot < kPciSlots; ++slot) {
    const PciFunction function{slot, 0};
    if (!function.exists()) continue;
    f(function);
    ++count;
  }
  return count;
}

uint64_t ram_top() {
  uint64_t top = 0;
  for (size_t i = 0; i < boot_info().memmap_count; ++i) {
    const auto& e = boot_info().memmap[i];
    if (e.type == kMemmapRam && e.addr + e.size > top) top = e.addr + e.size;
  }
  return top;
}

}  // namespace

// Both ways into configuration space see the same devices with the same contents, and nothing where
// nothing is.
void pci_scan() {
  for (uint8_t slot = 0; slot < kPciSlots; ++slot) {
    for (uint8_t fn = 0; fn < 8; ++fn) {
      const PciFunction f{slot, fn};
      CHECK(f.ecam_address(0) != 0);
      const auto id = mmio_read<uint32_t>(f.ecam_address(0));
      CHECK_EQ(id, f.read32_by_ports(0));
      if (fn != 0 || id == 0xffffffff) {
        CHECK_EQ(id, 0xffffffff);
        continue;
      }
      for (uint16_t at = 0; at < 256; at = static_cast<uint16_t>(at + 4)) {
        const auto word = mmio_read<uint32_t>(f.ecam_address(at));
        CHECK_EQ(word, f.read32_by_ports(at));
        if (at >= 0x40) continue;
        for (uint16_t i = 0; i < 4; ++i) {
          const auto byte_at = static_cast<uint16_t>(at + i);
          const uint8_t byte = static_cast<uint8_t>(word >> (8 * i));
          CHECK_EQ(mmio_read<uint8_t>(f.ecam_address(byte_at)), byte);
          CHECK_EQ(f.read8_by_ports(byte_at), byte);
        }
        CHECK_EQ(mmio_read<uint16_t>(f.ecam_address(at + 2)), word >> 16);
        CHECK_EQ(f.read16_by_ports(static_cast<uint16_t>(at + 2)), word >> 16);
      }
    }
  }
  const PciFunction bridge{0, 0};
  CHECK(bridge.exists());
  CHECK_EQ(bridge.read16(kPciClass), kClassHostBridge);
  const unsigned count = for_each_device([](const PciFunction& f) {
    print("pci 00:%02x.0 %04x:%04x class %04x\n", f.slot, f.read16(kPciVendorId),
          f.read16(kPciDeviceId), f.read16(kPciClass));
    CHECK_EQ(f.read8(kPciHeaderType), 0);
  });
  CHECK(count >= 2);
  // With its enable bit off, 0xcfc is no configuration access; other buses are empty.
  out32(0xcf8, 0);
  CHECK_EQ(in32(0xcfc), 0xffffffff);
  out32(0xcf8, 0x80010000);
  CHECK_EQ(in32(0xcfc), 0xffffffff);
}

// There is no firmware, so the VMM places the BARs: powers of two, aligned, in a window, apart from
// each other and from RAM, with decoding on.
void pci_bars() {
  static PciBar bars[kBarsMax];
  size_t count = 0;
  for_each_device([&](const PciFunction& f) {
    const bool decodes = (f.read16(kPciCommand) & kPciCommandMemory) != 0;
    for (unsigned i = 0; i < kPciBars; ++i) {
      const PciBar bar = read_bar(f, i);
      if (bar.is_64bit) ++i;
      if (bar.size == 0) continue;
      print("pci 00:%02x.0 bar 0x%lx + 0x%lx\n", f.slot, bar.address, bar.size);
      CHECK(decodes);
      CHECK(!bar.is_io);
      CHECK_EQ(bar.size & (bar.size - 1), 0);
      CHECK_EQ(bar.address & (bar.size - 1), 0);
      CHECK(bar.address + bar.size > bar.address);
      if (bar.address < k4GiB) {
        CHECK(bar.address >= kWindow32Begin);
        CHECK(bar.address + bar.size <= kWindow32End);
      } else {
        CHECK(bar.is_64bit);
        CHECK(bar.address >= ram_top());
      }
      for (size_t k = 0; k < count; ++k) {
        CHECK(bar.address + bar.size <= bars[k].address ||
              bars[k].address + bars[k].size <= bar.address);
      }
      CHECK(count < kBarsMax);
      bars[count++] = bar;
    }
    Msix msix;
    if (msix.open(f)) CHECK(msix.size() >= 1);  // open() checks that the table lies in its BAR
  });
  CHECK(count > 0);
}

// What is read-only stays; what is writable keeps what was written; a BAR with decoding off is
// gone, and is back where it was afterwards.
void pci_registers() {
  for_each_device([](const PciFunction& f) {
    const uint32_t id = f.read32(kPciVendorId);
    const uint32_t class_revision = f.read32(0x08);
    f.write32(kPciVendorId, 0x12345678);
    f.write32(0x08, 0);
    f.write8(kPciVendorId, 0);
    f.write32(kPciCapabilities, 0);
    CHECK_EQ(f.read32(kPciVendorId), id);
    CHECK_EQ(f.read32(0x08), class_revision);
    if (f.slot == 0) return;
    f.write8(0x3c, 0x5a);  // the interrupt line is a scratch register
    CHECK_EQ(f.read8(0x3c), 0x5a);
    unsigned index = 0;
    PciBar bar = read_bar(f, index);
    while (bar.size == 0 && index + 1 < kPciBars) bar = read_bar(f, ++index);
    if (bar.size == 0) return;
    map_identity(bar.address, bar.size, true);
    const auto first = mmio_read<uint32_t>(bar.address);
    const uint16_t command = f.read16(kPciCommand);
    f.write16(kPciCommand, static_cast<uint16_t>(command & ~kPciCommandMemory));
    CHECK_EQ(mmio_read<uint32_t>(bar.address), 0xffffffff);
    f.write16(kPciCommand, command);
    CHECK_EQ(mmio_read<uint32_t>(bar.address), first);
    // Moved by as much as its size, it answers there.
    const uint64_t moved = bar.is_64bit && bar.address >= k4GiB ? bar.address + (uint64_t{1} << 30)
                                                                : kWindow32End - bar.size;
    map_identity(moved, bar.size, true);
    f.write16(kPciCommand, static_cast<uint16_t>(command & ~kPciCommandMemory));
    write_bar_address(f, index, moved, bar.is_64bit);
    f.write16(kPciCommand, command);
    CHECK_EQ(read_bar(f, index).address, moved);
    CHECK_EQ(mmio_read<uint32_t>(moved), first);
    CHECK_EQ(mmio_read<uint32_t>(bar.address), 0xffffffff);
    f.write16(kPciCommand, static_cast<uint16_t>(command & ~kPciCommandMemory));
    write_bar_address(f, index, bar.address, bar.is_64bit);
    f.write16(kPciCommand, command);
    CHECK_EQ(mmio_read<uint32_t>(bar.address), first);
  });
}

}  // namespace machine
