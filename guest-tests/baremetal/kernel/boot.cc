#include "kernel/boot.h"

#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/traps.h"

extern "C" char image_end[];

namespace kernel {
namespace {

constexpr uint32_t kStartInfoMagic = 0x336ec578;
constexpr uint64_t kImageStart = 0x100000;

BootInfo info;
char option_buffer[128];

void copy_boot_info(const hvm_start_info& s) {
  info.version = s.version;
  info.rsdp = s.rsdp_paddr;
  if (s.version >= 1) {
    CHECK(s.memmap_entries <= kMemmapMax);
    info.memmap_count = s.memmap_entries;
    memcpy(info.memmap, reinterpret_cast<const void*>(s.memmap_paddr),
           s.memmap_entries * sizeof(hvm_memmap_table_entry));
  }
  CHECK(s.nr_modules <= kModulesMax);
  info.module_count = s.nr_modules;
  memcpy(info.modules, reinterpret_cast<const void*>(s.modlist_paddr),
         s.nr_modules * sizeof(hvm_modlist_entry));
  if (s.cmdline_paddr != 0) {
    auto* text = reinterpret_cast<const char*>(s.cmdline_paddr);
    const size_t length = strlen(text);
    CHECK(length < kCmdlineMax);
    memcpy(info.cmdline, text, length + 1);
  }
}

// Pages come from the RAM that holds this image, above it and above the modules.
void find_free_memory() {
  uint64_t begin = reinterpret_cast<uint64_t>(image_end);
  for (size_t i = 0; i < info.module_count; ++i) {
    const uint64_t end = info.modules[i].paddr + info.modules[i].size;
    // A module at the top of RAM (where Lethe puts an initrd) leaves the room below it.
    if (info.modules[i].paddr < begin + 0x100000 && end > begin) begin = end;
  }
  for (size_t i = 0; i < info.memmap_count; ++i) {
    const auto& e = info.memmap[i];
    if (e.type != kMemmapRam || e.addr > kImageStart || e.addr + e.size <= kImageStart) continue;
    uint64_t end = e.addr + e.size < k4GiB ? e.addr + e.size : k4GiB;
    for (size_t m = 0; m < info.module_count; ++m) {
      if (info.modules[m].paddr >= begin && info.modules[m].paddr < end)
        end = info.modules[m].paddr;
    }
    memory_init(begin, end);
    return;
  }
  check_failed(__FILE_NAME__, __LINE__, "the memory map has RAM where the kernel was loaded");
}

}  // namespace

const BootInfo& boot_info() { return info; }

bool strings_equal(const char* a, const char* b) {
  while (*a != 0 && *a == *b) ++a, ++b;
  return *a == *b;
}

const char* option(const char* key) {
  const size_t key_length = strlen(key);
  for (const char* p = info.cmdline; *p != 0;) {
    const char* end = p;
    while (*end != 0 && *end != ' ') ++end;
    const auto length = static_cast<size_t>(end - p);
    if (length > key_length && p[key_length] == '=' && memcmp(p, key, key_length) == 0) {
      const size_t n = length - key_length - 1;
      CHECK(n < sizeof(option_buffer));
      memcpy(option_buffer, p + key_length + 1, n);
      option_buffer[n] = 0;
      return option_buffer;
    }
    p = *end == 0 ? end : end + 1;
  }
  return nullptr;
}

uint64_t option_number(const char* key, uint64_t otherwise) {
  const char* p = option(key);
  if (p == nullptr) return otherwise;
  unsigned base = 10;
  if (p[0] == '0' && p[1] == 'x') {
    base = 16;
    p += 2;
  }
  uint64_t value = 0;
  for (; *p != 0; ++p) {
    unsigned digit = 99;
    if (*p >= '0' && *p <= '9') digit = static_cast<unsigned>(*p - '0');
    if (*p >= 'a' && *p <= 'f') digit = static_cast<unsigned>(*p - 'a' + 10);
    CHECK(digit < base);
    value = value * base + digit;
  }
  return value;
}

extern "C" [[noreturn]] void kernel_main(const hvm_start_info* start_info) {
  serial_init();
  traps_init();
  CHECK(start_info != nullptr);
  CHECK_EQ(start_info->magic, kStartInfoMagic);
  copy_boot_info(*start_info);
  find_free_memory();
  clock_init();
  guest_main();
  debug_exit(kExitOk);
}

}  // namespace kernel
