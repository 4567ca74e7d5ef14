#include "guests/machine.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/virtio/blk.h"

extern "C" char image_end[];

using namespace kernel;

namespace machine {
namespace {

// RAM below the MMIO hole ends here at the latest.
constexpr uint64_t kLowRamMax = uint64_t{3} << 30;
constexpr uint64_t kMiB = 1 << 20;
// RAM that a machine may keep for itself below 1 MiB, and for tables at the top.
constexpr uint64_t kReservedMax = 2 * kMiB;

uint64_t ram_between(uint64_t begin, uint64_t end) {
  const BootInfo& b = boot_info();
  uint64_t total = 0;
  for (size_t i = 0; i < b.memmap_count; ++i) {
    const auto& e = b.memmap[i];
    if (e.type != kMemmapRam) continue;
    const uint64_t from = e.addr > begin ? e.addr : begin;
    const uint64_t to = e.addr + e.size < end ? e.addr + e.size : end;
    if (to > from) total += to - from;
  }
  return total;
}

void touch(uint64_t address) {
  auto* p = reinterpret_cast<volatile uint8_t*>(address);
  CHECK_EQ(*p, 0);
  *p = 0x5a;
  CHECK_EQ(*p, 0x5a);
}

}  // namespace

// The console carries every byte, also when a string is written by one instruction.
void banner() {
  static const char text[] = "banner by rep outsb\n";
  out8_string(kSerialPort, text, sizeof(text) - 1);
  print("numbers %d %u %x %08lx %s %c\n", -42, 42u, 0xbeefu, 0x1234ul, "text", 'c');
}

// The memory map has what the config (told again on the command line as ram_mib=) asked for, in
// entries that do not overlap, and its last bytes are there.
void memory_map() {
  const BootInfo& b = boot_info();
  CHECK(b.version >= 1);
  CHECK(b.memmap_count > 0);
  for (size_t i = 0; i < b.memmap_count; ++i) {
    const auto& e = b.memmap[i];
    print("memory 0x%lx + 0x%lx type %u\n", e.addr, e.size, e.type);
    CHECK(e.size > 0);
    CHECK(e.addr + e.size > e.addr);
    for (size_t j = 0; j < i; ++j) {
      const auto& f = b.memmap[j];
      CHECK(e.addr + e.size <= f.addr || f.addr + f.size <= e.addr);
    }
  }
  const uint64_t size = option_number("ram_mib", 128) * kMiB;
  const uint64_t low = size < kLowRamMax ? size : kLowRamMax;
  CHECK(ram_between(0, low) <= low);
  CHECK(ram_between(0, low) >= low - kReservedMax);
  CHECK_EQ(ram_between(low, k4GiB), 0);
  CHECK_EQ(ram_between(k4GiB, ~uint64_t{0}), size - low);
  touch(low - kReservedMax - 1);
  if (size > low) {
    const uint64_t top = k4GiB + size - low;
    map_identity(k4GiB, 1, false);
    touch(k4GiB);
    map_identity(top - 1, 1, false);
    touch(top - 1);
  }
}

// The initrd arrives whole, page aligned, in RAM, clear of the kernel.
void module() {
  const BootInfo& b = boot_info();
  CHECK_EQ(b.module_count, 1);
  const auto& m = b.modules[0];
  CHECK_EQ(m.size, kMiB);
  CHECK_EQ(m.paddr % kPageSize, 0);
  CHECK_EQ(ram_between(m.paddr, m.paddr + m.size), m.size);
  CHECK(m.paddr >= reinterpret_cast<uint64_t>(image_end) || m.paddr + m.size <= kMiB);
  const uint64_t sectors[] = {0, 7, 8, 1024, 2047};
  for (const uint64_t sector : sectors) {
    CHECK(
        sector_has_its_text(reinterpret_cast<const void*>(m.paddr + sector * kSectorSize), sector));
  }
}

}  // namespace machine
