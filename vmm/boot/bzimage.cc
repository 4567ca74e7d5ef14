#include "vmm/boot/bzimage.h"

#include <lz4.h>
#include <sys/mman.h>
#include <sys/random.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "vmm/boot/elf.h"

namespace lethe {
namespace {

constexpr uint64_t kSetupHeaderAt = 0x1F1;
constexpr uint32_t kHdrS = 0x53726448;
constexpr uint16_t kProtocolMin = 0x20C;
constexpr uint64_t kEntry64Offset = 0x200;
constexpr uint32_t kLz4LegacyMagic = 0x184C2102;
constexpr uint64_t kLz4BlockMax = 8 * kMiB;  // of the legacy frame format
constexpr uint64_t kUnpackedMax = 512 * kMiB;
constexpr uint64_t kKernelMap = 0xFFFF'FFFF'8000'0000;  // __START_KERNEL_map
constexpr uint64_t kKernelImageSize = kGiB;             // KERNEL_IMAGE_SIZE with KASLR
constexpr uint64_t kKaslrAlign = 2 * kMiB;

Unexpected does_not_fit(const ByteSource& source, uint64_t end, const GuestMemory& memory) {
  return config_error(
      "{} does not fit: it needs memory up to {:#x} below the initrd, the guest has {} MiB: raise "
      "memory.size",
      source.name(), end, memory.total_bytes() / kMiB);
}

// An anonymous mapping in huge pages: the unpacked kernel, for a moment.
class Scratch {
 public:
  [[nodiscard]] static Result<Scratch> create(size_t size) {
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return host_error("no memory to unpack the kernel ({} bytes)", size);
    (void)::madvise(data, size, MADV_HUGEPAGE);
    return Scratch(static_cast<uint8_t*>(data), size);
  }
  Scratch(Scratch&& other) noexcept
      : x_data(std::exchange(other.x_data, nullptr)), x_size(other.x_size) {}
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch() {
    if (x_data != nullptr) ::munmap(x_data, x_size);
  }
  [[nodiscard]] std::span<uint8_t> bytes() const { return {x_data, x_size}; }

 private:
  Scratch(uint8_t* data, size_t size) : x_data(data), x_size(size) {}
  uint8_t* x_data;
  size_t x_size;
};

uint32_t load32(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// The payload: LZ4's legacy frame (a magic number, then blocks preceded by their length), followed
// by the unpacked size.
Result<Scratch> unpack_lz4(std::span<const uint8_t> payload, const std::string& name) {
  const uint64_t unpacked = load32(payload.data() + payload.size() - 4);
  if (unpacked < kMiB || unpacked > kUnpackedMax)
    return config_error("{} says that it unpacks to {} bytes: it is damaged", name, unpacked);
  LETHE_TRY_ASSIGN(Scratch scratch, Scratch::create(unpacked));
  uint64_t in = 4;
  uint64_t out = 0;
  while (out < unpacked) {
    const uint64_t left = payload.size() - in;
    if (left < 4 || load32(payload.data() + in) > left - 4)
      return config_error("{} is damaged: its LZ4 payload ends early", name);
    const uint32_t block = load32(payload.data() + in);
    const auto room = static_cast<int>(std::min(kLz4BlockMax, unpacked - out));
    // SAFETY: LZ4 works on char; it is told the exact sizes on both sides.
    const int got =
        LZ4_decompress_safe(reinterpret_cast<const char*>(payload.data() + in + 4),
                            reinterpret_cast<char*>(scratch.bytes().data() + out),
                            static_cast<int>(std::min<uint32_t>(block, INT32_MAX)), room);
    if (got <= 0) return config_error("{} is damaged: its LZ4 payload can't be unpacked", name);
    in += 4 + block;
    out += static_cast<uint64_t>(got);
  }
  return scratch;
}

// A random multiple of 2 MiB in [low, high]; `low` if there is no room or no randomness.
uint64_t random_slot(uint64_t low, uint64_t high) {
  if (high < low + kKaslrAlign) return low;
  uint64_t random = 0;
  if (::getrandom(&random, sizeof random, 0) != sizeof random) return low;
  return low + random % ((high - low) / kKaslrAlign + 1) * kKaslrAlign;
}

// Applies the table that the kernel's build appends to the ELF file (arch/x86/tools/relocs.c), read
// backwards from its end: 32-bit places, a zero, 32-bit places to be lessened, a zero, 64-bit
// places, a zero. Each is a sign-extended link-time virtual address.
class Relocator {
 public:
  Relocator(std::span<const uint8_t> table_end, IoSlice image, uint64_t image_link_address,
            uint64_t delta)
      : x_bytes(table_end), x_image(image), x_link(image_link_address), x_delta(delta) {}

  // False when the table or a place in it is damaged.
  bool apply() {
    return apply_list<uint32_t>(x_delta) && apply_list<uint32_t>(-x_delta) &&
           apply_list<uint64_t>(x_delta);
  }

 private:
  template <typename T>
  bool apply_list(uint64_t delta) {
    while (x_bytes.size() >= 4) {
      const auto place = static_cast<int32_t>(load32(x_bytes.data() + x_bytes.size() - 4));
      x_bytes = x_bytes.first(x_bytes.size() - 4);
      if (place == 0) return true;
      const uint64_t at = static_cast<uint64_t>(int64_t{place}) - kKernelMap - x_link;
      if (at > x_image.size || x_image.size - at < sizeof(T)) return false;
      T value;
      std::memcpy(&value, x_image.data + at, sizeof value);
      value = static_cast<T>(value + delta);
      std::memcpy(x_image.data + at, &value, sizeof value);
    }
    return false;
  }

  std::span<const uint8_t> x_bytes;
  IoSlice x_image;
  uint64_t x_link;
  uint64_t x_delta;
};

Result<LoadedBzImage> load_unpacked(const ByteSource& source, const setup_header& header,
                                    std::span<const uint8_t> payload, const GuestMemory& memory,
                                    bool kaslr, uint64_t limit) {
  LETHE_TRY_ASSIGN(const Scratch scratch, unpack_lz4(payload, source.name()));
  const uint64_t room = header.init_size;
  const uint64_t preferred = header.pref_address;
  if (preferred + room > limit || preferred % kKaslrAlign != 0)
    return does_not_fit(source, preferred + room, memory);
  const uint64_t start = kaslr ? random_slot(preferred, limit - room) : preferred;
  const uint64_t virtual_start =
      kaslr ? random_slot(preferred, kKernelImageSize - room) : preferred;

  const BufferSource elf(scratch.bytes(), source.name() + " (unpacked)");
  LETHE_TRY_ASSIGN(const LoadedElf loaded, load_elf(elf, memory, start - preferred));
  if (loaded.end > start + room || loaded.start < start)
    return config_error("{} is damaged: its kernel is larger than its header says", source.name());
  if (kaslr) {  // also where chance moves it by nothing: a damaged table is always refused
    const auto image = memory.slice(GuestAddr{loaded.start}, loaded.end - loaded.start);
    const uint64_t link_start = loaded.start - (start - preferred);
    if (!image ||
        !Relocator(scratch.bytes(), *image, link_start, virtual_start - preferred).apply())
      return config_error("{} is damaged: its relocation table is wrong", source.name());
  }
  LoadedBzImage result;
  result.header = header;
  if (kaslr) result.header.loadflags |= KASLR_FLAG;
  result.start = start;
  result.end = start + room;
  result.entry = loaded.entry;
  result.unpacked = true;
  return result;
}

}  // namespace

Result<setup_header> read_setup_header(const ByteSource& source) {
  setup_header header{};
  // SAFETY: a plain wire struct; the span covers exactly it.
  std::span<uint8_t> bytes(reinterpret_cast<uint8_t*>(&header), sizeof header);
  if (source.size() < kSetupHeaderAt + sizeof header || !source.read(kSetupHeaderAt, bytes) ||
      header.header != kHdrS)
    return config_error("{} is neither an ELF file nor a Linux bzImage", source.name());
  if (header.version < kProtocolMin || (header.xloadflags & XLF_KERNEL_64) == 0)
    return config_error(
        "{} is a Linux kernel without the 64-bit boot protocol (version {}.{}): use an x86-64 "
        "kernel",
        source.name(), header.version >> 8, header.version & 0xFF);
  if (header.relocatable_kernel == 0 || header.init_size == 0 ||
      header.init_size > kKernelImageSize || header.pref_address < kMiB ||
      header.pref_address > kKernelImageSize)
    return config_error("{} has a damaged setup header", source.name());
  return header;
}

Result<LoadedBzImage> load_bzimage(const ByteSource& source, const GuestMemory& memory, bool unpack,
                                   bool kaslr, uint64_t limit) {
  LETHE_TRY_ASSIGN(const setup_header header, read_setup_header(source));
  const uint64_t setup_bytes =
      (uint64_t{header.setup_sects == 0 ? 4U : header.setup_sects} + 1) * 512;
  // syssize counts 16-byte paragraphs of the protected-mode code: what must be there.
  const uint64_t code_bytes = uint64_t{header.syssize} * 16;
  if (code_bytes == 0 || source.size() < setup_bytes + code_bytes - 15)
    return config_error("{} is truncated: it has {} bytes, its header says {}", source.name(),
                        source.size(), setup_bytes + code_bytes);

  if (unpack && header.payload_length >= 16) {
    const uint64_t payload_at = setup_bytes + header.payload_offset;
    std::vector<uint8_t> payload(std::min<uint64_t>(header.payload_length, source.size()));
    LETHE_TRY(source.read(payload_at, payload));
    if (load32(payload.data()) == kLz4LegacyMagic)
      return load_unpacked(source, header, payload, memory, kaslr, limit);
    log_info(LogModule::kVmm, "{}: its payload is not LZ4: the guest unpacks it", source.name());
  }
  LoadedBzImage result;
  result.header = header;
  result.start = header.pref_address;
  result.end = result.start + header.init_size;
  result.entry = result.start + kEntry64Offset;
  const auto room = memory.slice(GuestAddr{result.start}, header.init_size);
  const uint64_t image_bytes = source.size() - setup_bytes;
  if (!room || result.end > limit || image_bytes > room->size)
    return does_not_fit(source, result.end, memory);
  LETHE_TRY(source.read(setup_bytes, {room->data, image_bytes}));
  return result;
}

}  // namespace lethe
