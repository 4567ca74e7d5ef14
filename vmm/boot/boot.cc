#include "vmm/boot/boot.h"

#include <asm/bootparam.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "base/assert.h"
#include "devices/legacy/acpi_power/acpi_power.h"
#include "vmm/boot/byte_source.h"
#include "vmm/boot/bzimage.h"
#include "vmm/boot/elf.h"
#include "vmm/boot/layout.h"

namespace lethe {
namespace {

struct Initrd {
  uint64_t start = 0;
  uint64_t size = 0;
};

// e820 types, which PVH's memory map uses too.
constexpr uint32_t kE820Ram = 1;
constexpr uint32_t kE820Reserved = 2;

struct MapEntry {
  uint64_t start;
  uint64_t size;
  uint32_t type;
};

std::vector<MapEntry> memory_map(const GuestMemory& memory) {
  std::vector<MapEntry> map;
  for (const MemoryRegion& region : memory.regions()) {
    if (region.start.value != 0) {
      map.push_back({region.start.value, region.size, kE820Ram});
      continue;
    }
    map.push_back({0, layout::kLowRamEnd, kE820Ram});
    map.push_back({layout::kLowRamEnd, layout::kHighRamStart - layout::kLowRamEnd, kE820Reserved});
    map.push_back({layout::kHighRamStart, region.size - layout::kHighRamStart, kE820Ram});
  }
  // Linux uses ECAM only where the memory map or ACPI reserves it.
  map.push_back({layout::kEcam, kMiB, kE820Reserved});
  return map;
}

uint64_t low_ram_end(const GuestMemory& memory) {
  const auto regions = memory.regions();
  LETHE_ASSERT(!regions.empty() && regions[0].start.value == 0);
  return regions[0].size;
}

template <typename T>
void put(const GuestMemory& memory, uint64_t address, const T& value) {
  LETHE_ASSERT(memory.store(GuestAddr{address}, value));  // low memory is always there
}

Result<> put_command_line(const GuestMemory& memory, const std::string& text, uint64_t limit) {
  if (text.size() + 1 > limit)
    return config_error("boot.cmdline has {} bytes: this kernel takes {} at most", text.size(),
                        limit - 1);
  // SAFETY: the characters and the final zero byte of the string.
  const std::span bytes(reinterpret_cast<const uint8_t*>(text.c_str()), text.size() + 1);
  LETHE_ASSERT(memory.write(GuestAddr{layout::kCommandLine}, bytes));
  return {};
}

// The initrd goes as high as it may, so that the kernel has room below.
Result<Initrd> place_initrd(const std::string& path, uint64_t low_end, uint64_t highest,
                            const GuestMemory& memory) {
  if (path.empty()) return Initrd{low_end, 0};
  LETHE_TRY_ASSIGN(const auto file, FileSource::open(path, "boot.initrd"));
  const uint64_t end = std::min(low_end, highest);
  const uint64_t room = end > layout::kHighRamStart ? end - layout::kHighRamStart : 0;
  if (file.size() == 0) return config_error("{} is empty", file.name());
  if (file.size() > room)
    return config_error("{} ({} MiB) does not fit into the guest's {} MiB: raise memory.size",
                        file.name(), file.size() / kMiB, memory.total_bytes() / kMiB);
  const Initrd initrd{(end - file.size()) & ~(kPageBytes - 1), file.size()};
  const auto slice = memory.slice(GuestAddr{initrd.start}, initrd.size);
  LETHE_ASSERT(slice.has_value());
  LETHE_TRY(file.read(0, {slice->data, slice->size}));
  return initrd;
}

Result<> check_overlap(uint64_t kernel_end, const Initrd& initrd, const BootOptions& options,
                       const GuestMemory& memory) {
  if (initrd.size > 0 && kernel_end > initrd.start)
    return config_error(
        "boot.initrd '{}' ({} MiB) and boot.kernel '{}' do not fit into the guest's {} MiB "
        "together: raise memory.size",
        options.initrd, initrd.size / kMiB, options.kernel, memory.total_bytes() / kMiB);
  return {};
}

void put_gdt(const GuestMemory& memory) {
  for (size_t i = 0; i < std::size(kBootGdt); ++i) put(memory, layout::kGdt + 8 * i, kBootGdt[i]);
}

// All the BIOS there is: a reset. Linux with hardware-reduced ACPI insists on restarting by EFI,
// and where there is none it goes to real mode and enters the BIOS (arch/x86/kernel/reboot.c:
// efi_reboot_required() in 6.1, then BOOT_EFI falls through to BOOT_BIOS).
void put_reset_vector(const GuestMemory& memory) {
  static_assert(kResetPort == 0xCF9 && kResetValue == 0x06);
  constexpr std::array<uint8_t, 10> kCode = {
      0xBA, 0xF9, 0x0C,  // mov dx, 0xcf9
      0xB0, 0x06,        // mov al, 6
      0xEE,              // out dx, al
      0xFA, 0xF4,        // cli; hlt
      0xEB, 0xFD,        // jmp to the hlt
  };
  put(memory, layout::kResetVector, kCode);
}

// An identity map of the first 4 GiB in 2 MiB pages: what the 64-bit boot protocol asks for.
void put_page_tables(const GuestMemory& memory) {
  constexpr uint64_t kPresentWrite = 3;
  constexpr uint64_t kLargePage = 1 << 7;
  const uint64_t directories = layout::kPageTables + 2 * kPageBytes;
  put(memory, layout::kPageTables, (layout::kPageTables + kPageBytes) | kPresentWrite);
  for (uint64_t i = 0; i < 4; ++i)
    put(memory, layout::kPageTables + kPageBytes + 8 * i,
        (directories + i * kPageBytes) | kPresentWrite);
  for (uint64_t i = 0; i < 4 * 512; ++i)
    put(memory, directories + 8 * i, (i * 2 * kMiB) | kPresentWrite | kLargePage);
}

Result<BootState> start_linux(const BootOptions& options, const GuestMemory& memory,
                              const FileSource& kernel, uint64_t rsdp) {
  LETHE_TRY_ASSIGN(const setup_header asked, read_setup_header(kernel));
  LETHE_TRY_ASSIGN(const Initrd initrd, place_initrd(options.initrd, low_ram_end(memory),
                                                     uint64_t{asked.initrd_addr_max} + 1, memory));
  const bool kaslr = (" " + options.cmdline + " ").find(" nokaslr ") == std::string::npos;
  LETHE_TRY_ASSIGN(const LoadedBzImage loaded,
                   load_bzimage(kernel, memory, options.unpack, kaslr, initrd.start));
  LETHE_TRY(put_command_line(
      memory, options.cmdline,
      std::min<uint64_t>(uint64_t{asked.cmdline_size} + 1, layout::kCommandLineMax)));
  boot_params params{};
  params.hdr = loaded.header;
  params.hdr.type_of_loader = 0xFF;  // undefined: no number is assigned to Lethe
  params.hdr.cmd_line_ptr = static_cast<uint32_t>(layout::kCommandLine);
  params.hdr.ramdisk_image = initrd.size == 0 ? 0 : static_cast<uint32_t>(initrd.start);
  params.hdr.ramdisk_size = static_cast<uint32_t>(initrd.size);
  params.acpi_rsdp_addr = rsdp;
  for (const MapEntry& entry : memory_map(memory)) {
    LETHE_ASSERT(params.e820_entries < std::size(params.e820_table));
    params.e820_table[params.e820_entries++] = {entry.start, entry.size, entry.type};
  }
  put(memory, layout::kBootParams, params);
  put_gdt(memory);
  put_page_tables(memory);
  BootState state;
  state.mode = BootState::Mode::kLong64;
  state.entry = loaded.entry;
  state.rsi = layout::kBootParams;
  state.cr3 = layout::kPageTables;
  state.gdt = layout::kGdt;
  return state;
}

// Xen's public headers are not installed with the kernel's: these are written after
// xen/include/public/arch-x86/hvm/start_info.h, version 1 of the structure.
struct HvmStartInfo {
  uint32_t magic;
  uint32_t version;
  uint32_t flags;
  uint32_t nr_modules;
  uint64_t modlist_paddr;
  uint64_t cmdline_paddr;
  uint64_t rsdp_paddr;
  uint64_t memmap_paddr;
  uint32_t memmap_entries;
  uint32_t reserved;
};
struct HvmModlistEntry {
  uint64_t paddr;
  uint64_t size;
  uint64_t cmdline_paddr;
  uint64_t reserved;
};
struct HvmMemmapTableEntry {
  uint64_t addr;
  uint64_t size;
  uint32_t type;
  uint32_t reserved;
};
constexpr uint32_t kHvmStartMagic = 0x336EC578;

Result<BootState> start_pvh(const BootOptions& options, const GuestMemory& memory,
                            const FileSource& kernel, uint64_t rsdp) {
  LETHE_TRY_ASSIGN(const LoadedElf loaded, load_elf(kernel, memory));
  if (!loaded.pvh_entry)
    return config_error(
        "{} is an ELF file without a PVH entry (XEN_ELFNOTE_PHYS32_ENTRY): build the kernel with "
        "CONFIG_PVH=y, or use its bzImage",
        kernel.name());
  LETHE_TRY_ASSIGN(const Initrd initrd,
                   place_initrd(options.initrd, low_ram_end(memory), 4 * kGiB, memory));
  LETHE_TRY(check_overlap(loaded.end, initrd, options, memory));
  LETHE_TRY(put_command_line(memory, options.cmdline, layout::kCommandLineMax));
  constexpr uint64_t kModules = layout::kPvhStartInfo + sizeof(HvmStartInfo);
  constexpr uint64_t kMemmap = kModules + sizeof(HvmModlistEntry);
  const auto map = memory_map(memory);
  HvmStartInfo info{};
  info.magic = kHvmStartMagic;
  info.version = 1;
  info.nr_modules = initrd.size > 0 ? 1 : 0;
  info.modlist_paddr = initrd.size > 0 ? kModules : 0;
  info.cmdline_paddr = layout::kCommandLine;
  info.rsdp_paddr = rsdp;
  info.memmap_paddr = kMemmap;
  info.memmap_entries = static_cast<uint32_t>(map.size());
  put(memory, layout::kPvhStartInfo, info);
  put(memory, kModules, HvmModlistEntry{initrd.start, initrd.size, 0, 0});
  for (size_t i = 0; i < map.size(); ++i)
    put(memory, kMemmap + i * sizeof(HvmMemmapTableEntry),
        HvmMemmapTableEntry{map[i].start, map[i].size, map[i].type, 0});
  put_gdt(memory);
  BootState state;
  state.mode = BootState::Mode::kProtected32;
  state.entry = *loaded.pvh_entry;
  state.rbx = layout::kPvhStartInfo;
  state.gdt = layout::kGdt;
  return state;
}

}  // namespace

Result<BootState> load_guest(const BootOptions& options, const GuestMemory& memory, uint64_t rsdp) {
  LETHE_TRY_ASSIGN(const auto kernel, FileSource::open(options.kernel, "boot.kernel"));
  put_reset_vector(memory);
  return is_elf(kernel) ? start_pvh(options, memory, kernel, rsdp)
                        : start_linux(options, memory, kernel, rsdp);
}

Result<> check_boot_files(const BootOptions& options) {
  LETHE_TRY_ASSIGN(const auto kernel, FileSource::open(options.kernel, "boot.kernel"));
  if (!is_elf(kernel)) LETHE_TRY(read_setup_header(kernel));
  if (!options.initrd.empty()) LETHE_TRY(FileSource::open(options.initrd, "boot.initrd"));
  return {};
}

}  // namespace lethe
