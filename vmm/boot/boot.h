// From the config's [boot] table to a guest that is ready to run: kernel, initrd, command line and
// the start-up structures in guest memory, and the state the boot processor starts in.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "memory/guest_memory.h"
#include "vmm/kvm/vcpu.h"

namespace lethe {

struct BootOptions {
  std::string kernel = {};  // path: ELF with a PVH note, or a bzImage
  std::string initrd = {};  // path; empty: none
  std::string cmdline = {};
  bool unpack = true;  // unpack a bzImage on the host
};

// `rsdp` is the guest-physical address of the ACPI root pointer. Memory must be fresh (all zero).
// Errors are of class kConfig and name the key and the file.
[[nodiscard]] Result<BootState> load_guest(const BootOptions& options, const GuestMemory& memory,
                                           uint64_t rsdp);

// Checks what load_guest() would, as far as it can be told without a machine: files and their
// headers. For `lethe validate`.
[[nodiscard]] Result<> check_boot_files(const BootOptions& options);

}  // namespace lethe
