// What the VMM told the guest at entry.
// Source: Xen public header arch-x86/hvm/start_info.h, version 1.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kernel {

struct hvm_start_info {
  uint32_t magic;  // 0x336ec578
  uint32_t version;
  uint32_t flags;
  uint32_t nr_modules;
  uint64_t modlist_paddr;
  uint64_t cmdline_paddr;
  uint64_t rsdp_paddr;
  uint64_t memmap_paddr;  // from version 1
  uint32_t memmap_entries;
  uint32_t reserved;
};

struct hvm_modlist_entry {
  uint64_t paddr;
  uint64_t size;
  uint64_t cmdline_paddr;
  uint64_t reserved;
};

struct hvm_memmap_table_entry {
  uint64_t addr;
  uint64_t size;
  uint32_t type;
  uint32_t reserved;
};
inline constexpr uint32_t kMemmapRam = 1;

inline constexpr size_t kMemmapMax = 32;
inline constexpr size_t kCmdlineMax = 4096;
inline constexpr size_t kModulesMax = 4;

// A copy, taken before the guest uses any memory of its own choice.
struct BootInfo {
  uint32_t version;
  uint64_t rsdp;
  size_t memmap_count;
  hvm_memmap_table_entry memmap[kMemmapMax];
  size_t module_count;
  hvm_modlist_entry modules[kModulesMax];
  char cmdline[kCmdlineMax];
};

const BootInfo& boot_info();

// The value of `key=value` on the command line, copied into a buffer that lives until the next call
// with another key; null if there is none.
const char* option(const char* key);
// Same as a number (decimal, or 0x...), with what to give when it is missing.
uint64_t option_number(const char* key, uint64_t otherwise);

bool strings_equal(const char* a, const char* b);

}  // namespace kernel

// Each guest defines this; returning means success.
void guest_main();
