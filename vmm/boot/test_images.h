// Small kernel images for tests, made in memory, and files to hold them.
#pragma once

#include <asm/bootparam.h>
#include <elf.h>
#include <fcntl.h>
#include <lz4.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "memory/guest_memory.h"

namespace lethe::test {

using Bytes = std::vector<uint8_t>;

template <typename T>
void put(Bytes& bytes, size_t at, const T& value) {
  if (bytes.size() < at + sizeof value) bytes.resize(at + sizeof value);
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

template <typename T>
T get(const Bytes& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

inline constexpr size_t kElfSegmentAt = 0x1000;  // offset in the file
inline constexpr size_t kElfNoteAt = 0x800;

struct ElfOptions {
  uint64_t physical = 2 * kMiB;
  uint64_t file_size = 0x2000;  // of the one segment
  uint64_t memory_size = 0x3000;
  uint16_t machine = EM_X86_64;
  bool pvh = true;
};

// An ELF file with one segment, filled with 0x5A, and a PVH note whose entry is its start.
inline Bytes make_elf(const ElfOptions& options = {}) {
  Bytes elf;
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_machine = options.machine;
  header.e_phoff = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = options.pvh ? 2 : 1;
  header.e_entry = options.physical;
  put(elf, 0, header);
  Elf64_Phdr load{};
  load.p_type = PT_LOAD;
  load.p_offset = kElfSegmentAt;
  load.p_paddr = options.physical;
  load.p_filesz = options.file_size;
  load.p_memsz = options.memory_size;
  put(elf, sizeof header, load);
  if (options.pvh) {
    Elf64_Phdr note{};
    note.p_type = PT_NOTE;
    note.p_offset = kElfNoteAt;
    note.p_filesz = 20;
    put(elf, sizeof header + sizeof load, note);
    put(elf, kElfNoteAt, Elf64_Nhdr{4, 4, 18});
    put(elf, kElfNoteAt + 12, std::array<char, 4>{'X', 'e', 'n', '\0'});
    put(elf, kElfNoteAt + 16, static_cast<uint32_t>(options.physical));
  }
  elf.resize(kElfSegmentAt + options.file_size, 0x5A);
  std::fill(elf.begin() + kElfSegmentAt, elf.end(), uint8_t{0x5A});
  return elf;
}

inline constexpr uint32_t kBzPreferred = 16 * kMiB;
inline constexpr size_t kBzSetupBytes = 5 * 512;

// A bzImage of protocol 2.15 around `code`, whose payload lies at `payload_offset` of it.
inline Bytes make_bzimage(const Bytes& code, uint32_t payload_offset, uint32_t payload_length) {
  Bytes image(kBzSetupBytes);
  setup_header header{};
  header.setup_sects = 4;
  header.syssize = static_cast<uint32_t>((code.size() + 15) / 16);
  header.boot_flag = 0xAA55;
  header.header = 0x53726448;
  header.version = 0x20F;
  header.loadflags = 1;
  header.initrd_addr_max = 0x7FFF'FFFF;
  header.kernel_alignment = 2 * kMiB;
  header.relocatable_kernel = 1;
  header.xloadflags = XLF_KERNEL_64;
  header.cmdline_size = 2047;
  header.payload_offset = payload_offset;
  header.payload_length = payload_length;
  header.pref_address = kBzPreferred;
  header.init_size = 4 * kMiB;
  put(image, 0x1F1, header);
  image.insert(image.end(), code.begin(), code.end());
  return image;
}

// The payload as Linux's build makes it: LZ4's legacy frame, then the unpacked size.
inline Bytes pack_lz4(const Bytes& plain) {
  Bytes packed(8 + static_cast<size_t>(LZ4_compressBound(static_cast<int>(plain.size()))));
  const int size = LZ4_compress_default(
      reinterpret_cast<const char*>(plain.data()), reinterpret_cast<char*>(packed.data() + 8),
      static_cast<int>(plain.size()), static_cast<int>(packed.size() - 8));
  put(packed, 0, uint32_t{0x184C2102});
  put(packed, 4, static_cast<uint32_t>(size));
  packed.resize(8 + static_cast<size_t>(size));
  put(packed, packed.size(), static_cast<uint32_t>(plain.size()));
  return packed;
}

// A file that goes away with the object.
class TemporaryFile {
 public:
  explicit TemporaryFile(const Bytes& content) {
    char path[] = "/tmp/lethe-test-XXXXXX";
    const int fd = ::mkstemp(path);
    x_path = path;
    (void)!::write(fd, content.data(), content.size());
    ::close(fd);
  }
  ~TemporaryFile() { ::unlink(x_path.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  [[nodiscard]] const std::string& path() const { return x_path; }

 private:
  std::string x_path;
};

}  // namespace lethe::test
