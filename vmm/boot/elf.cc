#include "vmm/boot/elf.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "vmm/boot/layout.h"

namespace lethe {
namespace {

constexpr uint16_t kSegmentsMax = 256;
constexpr uint64_t kNotesBytesMax = 1 * kMiB;
constexpr uint32_t kXenElfnotePhys32Entry = 18;

template <typename T>
Result<T> read_struct(const ByteSource& source, uint64_t offset) {
  T value;
  // SAFETY: T is a plain wire struct; the span covers exactly it.
  LETHE_TRY(source.read(offset, {reinterpret_cast<uint8_t*>(&value), sizeof value}));
  return value;
}

Result<Elf64_Ehdr> read_header(const ByteSource& source) {
  LETHE_TRY_ASSIGN(auto header, read_struct<Elf64_Ehdr>(source, 0));
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
      header.e_machine != EM_X86_64)
    return config_error(
        "{} is an ELF file for another machine (class {}, machine {}): Lethe runs x86-64 kernels",
        source.name(), header.e_ident[EI_CLASS], header.e_machine);
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 ||
      header.e_phnum > kSegmentsMax)
    return config_error("{} has {} program headers of {} bytes: not a kernel that can be loaded",
                        source.name(), header.e_phnum, header.e_phentsize);
  return header;
}

Result<> load_segment(const ByteSource& source, const Elf64_Phdr& segment,
                      const GuestMemory& memory, uint64_t move, LoadedElf& loaded) {
  const uint64_t start = segment.p_paddr + move;
  if (segment.p_filesz > segment.p_memsz || start < segment.p_paddr)
    return config_error("{} has a damaged program header", source.name());
  if (start < layout::kHighRamStart)
    return config_error("{} wants to be loaded at {:#x}: only addresses from 1 MiB up are free",
                        source.name(), start);
  const auto slice = memory.slice(GuestAddr{start}, segment.p_memsz);
  if (!slice)
    return config_error(
        "{} does not fit: it needs memory up to {:#x}, the guest has {} MiB: raise memory.size",
        source.name(), start + segment.p_memsz, memory.total_bytes() / kMiB);
  // What lies between p_filesz and p_memsz must be zero, and is: the memory is fresh.
  LETHE_TRY(source.read(segment.p_offset, {slice->data, segment.p_filesz}));
  loaded.start = std::min(loaded.start, start);
  loaded.end = std::max(loaded.end, start + segment.p_memsz);
  return {};
}

uint64_t align4(uint64_t value) { return (value + 3) & ~uint64_t{3}; }

Result<> find_pvh_entry(const ByteSource& source, const Elf64_Phdr& notes, LoadedElf& loaded) {
  if (notes.p_filesz > kNotesBytesMax)
    return config_error("{} has {} bytes of notes: more than {}", source.name(), notes.p_filesz,
                        kNotesBytesMax);
  std::vector<uint8_t> bytes(notes.p_filesz);
  LETHE_TRY(source.read(notes.p_offset, bytes));
  uint64_t at = 0;
  while (at + sizeof(Elf64_Nhdr) <= bytes.size()) {
    Elf64_Nhdr note;
    std::memcpy(&note, bytes.data() + at, sizeof note);
    const uint64_t name = at + sizeof note;
    const uint64_t value = name + align4(note.n_namesz);
    const uint64_t next = value + align4(note.n_descsz);
    if (value + note.n_descsz > bytes.size()) break;
    if (note.n_type == kXenElfnotePhys32Entry && note.n_namesz == 4 &&
        std::memcmp(bytes.data() + name, "Xen", 4) == 0 &&
        (note.n_descsz == 4 || note.n_descsz == 8)) {
      uint64_t entry = 0;
      std::memcpy(&entry, bytes.data() + value, note.n_descsz);
      loaded.pvh_entry = entry;
    }
    at = next;
  }
  return {};
}

}  // namespace

bool is_elf(const ByteSource& source) {
  uint8_t magic[SELFMAG];
  return source.read(0, magic).has_value() && std::memcmp(magic, ELFMAG, SELFMAG) == 0;
}

Result<LoadedElf> load_elf(const ByteSource& source, const GuestMemory& memory, uint64_t move) {
  LETHE_TRY_ASSIGN(const Elf64_Ehdr header, read_header(source));
  LoadedElf loaded;
  loaded.start = UINT64_MAX;
  for (uint16_t i = 0; i < header.e_phnum; ++i) {
    LETHE_TRY_ASSIGN(auto segment,
                     read_struct<Elf64_Phdr>(source, header.e_phoff + i * sizeof(Elf64_Phdr)));
    if (segment.p_type == PT_LOAD && segment.p_memsz > 0)
      LETHE_TRY(load_segment(source, segment, memory, move, loaded));
    if (segment.p_type == PT_NOTE) LETHE_TRY(find_pvh_entry(source, segment, loaded));
  }
  if (loaded.end == 0) return config_error("{} has nothing to load", source.name());
  loaded.entry = header.e_entry + move;
  const auto inside = [&](uint64_t at) { return at >= loaded.start && at < loaded.end; };
  if (loaded.pvh_entry) {
    *loaded.pvh_entry += move;
    if (!inside(*loaded.pvh_entry))
      return config_error("{} has its PVH entry {:#x} outside its segments", source.name(),
                          *loaded.pvh_entry);
  }
  return loaded;
}

}  // namespace lethe
