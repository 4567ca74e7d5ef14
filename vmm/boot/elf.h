// ELF kernels: loading their segments into guest memory, and finding the PVH entry point.
#pragma once

#include <cstdint>
#include <optional>

#include "base/result.h"
#include "memory/guest_memory.h"
#include "vmm/boot/byte_source.h"

namespace lethe {

struct LoadedElf {
  uint64_t start = 0;  // guest-physical, of the lowest segment
  uint64_t end = 0;    // past the highest one, zero-filled part included
  uint64_t entry = 0;  // e_entry, moved with the image
  // XEN_ELFNOTE_PHYS32_ENTRY (Xen's docs/misc/pvh.pandoc), if the image has one.
  std::optional<uint64_t> pvh_entry;
};

// True if the source starts with ELF's magic number.
[[nodiscard]] bool is_elf(const ByteSource& source);

// Loads each PT_LOAD segment at its physical address plus `move` bytes. Errors of class kConfig
// name the source: not x86-64, truncated, below 1 MiB, outside guest memory.
[[nodiscard]] Result<LoadedElf> load_elf(const ByteSource& source, const GuestMemory& memory,
                                         uint64_t move = 0);

}  // namespace lethe
