#include "memory/page_map.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "memory/return_pipeline.h"

namespace lethe {
namespace {

// Linux 6.7's UAPI; Debian 12's headers are older. include/uapi/linux/fs.h
struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};
struct PmScanArg {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, PmScanArg);
constexpr uint64_t kIsPresent = 1 << 3;
constexpr uint64_t kIsSwapped = 1 << 4;
constexpr uint64_t kIsPfnZero = 1 << 5;
constexpr uint64_t kIsHuge = 1 << 6;

// An entry of /proc/self/pagemap.
constexpr uint64_t kEntrySwapped = uint64_t{1} << 62;
constexpr uint64_t kEntryPresent = uint64_t{1} << 63;

constexpr uint32_t kPages = kChunkBytes / kPageBytes;

uint64_t address(const uint8_t* at) { return reinterpret_cast<uintptr_t>(at); }

}  // namespace

PageMap::PageMap(UniqueFd fd, PoolOps& ops) : x_fd(std::move(fd)), x_ops(ops) {
  bool whole = false;
  x_can_scan = scan(nullptr, 0, 0, kIsPresent, whole) >= 0;
}

std::unique_ptr<PageMap> PageMap::open(PoolOps& ops) {
  UniqueFd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return nullptr;
  return std::unique_ptr<PageMap>(new PageMap(std::move(fd), ops));
}

// How many runs (one at most is looked for) of such pages the chunk has; negative: not supported.
int PageMap::scan(const uint8_t* chunk, uint64_t inverted, uint64_t all, uint64_t any,
                  bool& whole) const {
  PageRegion run{};
  PmScanArg arg{};
  arg.size = sizeof arg;
  arg.start = address(chunk);
  arg.end = address(chunk) + kChunkBytes;
  arg.vec = reinterpret_cast<uintptr_t>(&run);
  arg.vec_len = 1;
  arg.category_inverted = inverted;
  arg.category_mask = all;
  arg.category_anyof_mask = any;
  arg.return_mask = all | any;
  const int count = ::ioctl(x_fd.get(), kPagemapScan, &arg);
  whole = count == 1 && run.start == arg.start && run.end == arg.end;
  return count;
}

std::optional<uint64_t> PageMap::mapped_bytes(const uint8_t* from, uint64_t size) const {
  if (!x_can_scan) return std::nullopt;
  std::array<PageRegion, 32> runs;
  PmScanArg arg{};
  arg.size = sizeof arg;
  arg.start = address(from);
  arg.end = address(from) + size;
  arg.vec = reinterpret_cast<uintptr_t>(runs.data());
  arg.vec_len = runs.size();
  arg.category_mask = arg.return_mask = kIsPresent;
  uint64_t total = 0;
  // A call ends early when it has found as many runs as there is room for.
  while (arg.start < arg.end) {
    arg.walk_end = 0;
    const int count = ::ioctl(x_fd.get(), kPagemapScan, &arg);
    if (count < 0 || arg.walk_end <= arg.start) return std::nullopt;
    for (int i = 0; i < count; ++i) total += runs[i].end - runs[i].start;
    arg.start = arg.walk_end;
  }
  return total;
}

bool PageMap::is_hole(const uint8_t* chunk) const {
  if (x_can_scan) {
    bool whole = false;
    return scan(chunk, 0, 0, kIsPresent | kIsSwapped, whole) == 0;
  }
  uint64_t bits[8];
  if (!read_pages(chunk, kPages, bits)) return false;
  for (const uint64_t word : bits)
    if (word != 0) return false;
  return true;
}

bool PageMap::is_full(const uint8_t* chunk) const {
  uint64_t bits[8];
  if (!read_pages(chunk, kPages, bits)) return false;
  for (const uint64_t word : bits)
    if (word != ~uint64_t{0}) return false;
  return true;
}

std::optional<bool> PageMap::is_huge(const uint8_t* chunk) const {
  if (!x_can_scan) return std::nullopt;
  bool whole = false;
  (void)scan(chunk, kIsPfnZero, kIsPresent | kIsHuge | kIsPfnZero, 0, whole);
  return whole;
}

bool PageMap::read_pages(const uint8_t* at, uint32_t pages, uint64_t (&bits)[8]) const {
  std::array<uint64_t, kPages> entries;
  for (uint64_t& word : bits) word = 0;
  const size_t bytes = pages * sizeof(uint64_t);
  const auto offset = static_cast<off_t>(address(at) / kPageBytes * sizeof(uint64_t));
  if (pages > kPages || x_ops.read_at(x_fd.get(), entries.data(), bytes, offset) != 0) return false;
  for (uint32_t i = 0; i < pages; ++i)
    if ((entries[i] & (kEntryPresent | kEntrySwapped)) != 0) bits[i / 64] |= uint64_t{1} << i % 64;
  return true;
}

}  // namespace lethe
