// Linux bzImage files (Documentation/arch/x86/boot.rst, 64-bit boot protocol): checked, loaded as
// they are, or unpacked on the host and entered as the ELF kernel inside, which spares the guest
// the unpacking. The kernel's own relocations are then applied here with random offsets, as its
// unpacker would have done, so that KASLR is kept.
#pragma once

#include <asm/bootparam.h>

#include <cstdint>
#include <string_view>

#include "base/result.h"
#include "memory/guest_memory.h"
#include "vmm/boot/byte_source.h"

namespace lethe {

struct LoadedBzImage {
  setup_header header{};  // to be completed and handed to the kernel
  uint64_t start = 0;     // guest-physical range the kernel runs in, its working space included
  uint64_t end = 0;
  uint64_t entry = 0;  // 64-bit entry point
  bool unpacked = false;
};

// The setup header, checked: magic number, protocol 2.12 or later, 64-bit entry, sizes within the
// file. Errors of class kConfig name the file.
[[nodiscard]] Result<setup_header> read_setup_header(const ByteSource& source);

// Loads the image. `unpack`: unpack on the host if the payload is LZ4, else leave it to the guest.
// `kaslr`: random offsets when unpacking; the physical one keeps the kernel below `limit`, which is
// where the initrd starts or low RAM ends.
[[nodiscard]] Result<LoadedBzImage> load_bzimage(const ByteSource& source,
                                                 const GuestMemory& memory, bool unpack, bool kaslr,
                                                 uint64_t limit);

}  // namespace lethe
