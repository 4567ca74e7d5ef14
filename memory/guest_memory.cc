#include "memory/guest_memory.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "memory/memory_ops.h"

namespace lethe {
namespace {

uint64_t round_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

// Bytes as the config writes them, for error texts.
std::string size_text(uint64_t bytes) {
  if (bytes % kGiB == 0) return fmt::format("{} GiB", bytes / kGiB);
  if (bytes % kMiB == 0) return fmt::format("{} MiB", bytes / kMiB);
  return fmt::format("{} bytes", bytes);
}

Result<UniqueFd> make_memfd(uint64_t size, MemoryBacking backing) {
  const bool huge = backing == MemoryBacking::kHugetlb;
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0U);
  UniqueFd fd(::memfd_create("lethe-ram", flags));
  if (!fd.valid())
    return host_error("cannot create a memory file for guest RAM: {}", errno_text(errno));
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
    return host_error("cannot size a memory file to {}: {}", size_text(size), errno_text(errno));
  // Whoever else gets the descriptor must not be able to shrink it under us (SIGBUS).
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return host_error("cannot seal the memory file of guest RAM: {}", errno_text(errno));
  return Result<UniqueFd>(std::move(fd));
}

Unexpected mapping_error(uint64_t size, MemoryBacking backing, int error) {
  const char* hint = "";
  if (error == ENOMEM && backing == MemoryBacking::kHugetlb) {
    hint = "; reserve 2 MiB huge pages in /proc/sys/vm/nr_hugepages, or choose another backing";
  } else if (error == ENOMEM || error == EINVAL) {
    hint = "; lower memory.size, or raise the limit (ulimit -v, vm.overcommit_memory)";
  }
  return host_error("cannot map {} of guest RAM: {}{}", size_text(size), errno_text(error), hint);
}

}  // namespace

struct GuestMemory::Mapping {
  Mapping(uint8_t* at, uint64_t bytes, UniqueFd file)
      : host(at), size(bytes), fd(std::move(file)) {}
  Mapping(Mapping&& other) noexcept
      : host(std::exchange(other.host, nullptr)), size(other.size), fd(std::move(other.fd)) {}
  Mapping& operator=(Mapping&&) = delete;
  ~Mapping() {
    if (host != nullptr) ::munmap(host, size);
  }

  static Result<Mapping> create(const Range& range, const GuestMemoryOptions& options);

  uint8_t* host;
  uint64_t size;  // bytes mapped, at least the region's
  UniqueFd fd;
};

Result<GuestMemory::Mapping> GuestMemory::Mapping::create(const Range& range,
                                                          const GuestMemoryOptions& options) {
  const MemoryBacking backing = options.backing;
  const bool huge = backing == MemoryBacking::kHugetlb;
  // Huge pages are mapped whole; the region still ends where the range does.
  const uint64_t size = huge ? round_up(range.size, kHugePageBytes) : range.size;
  UniqueFd fd;
  if (backing != MemoryBacking::kAnonymous) {
    LETHE_TRY_ASSIGN(fd, make_memfd(size, backing));
  }

  // Reserve more than is needed, then keep the part where host and guest addresses are congruent
  // modulo 2 MiB: only then can KVM map huge pages through both page tables.
  const uint64_t reserved = size + kHugePageBytes;
  void* const area =
      ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) return mapping_error(range.size, backing, errno);
  // SAFETY: numbers to compute with: what becomes a pointer again lies in the reservation.
  const auto begin = reinterpret_cast<uintptr_t>(area);
  const uintptr_t offset = huge ? 0 : range.start.value % kHugePageBytes;
  uintptr_t at = round_up(begin, kHugePageBytes) + offset;
  if (at >= begin + kHugePageBytes) at -= kHugePageBytes;
  if (at > begin) ::munmap(area, at - begin);
  const uintptr_t tail = at + size;
  if (tail < begin + reserved) ::munmap(reinterpret_cast<void*>(tail), begin + reserved - tail);

  // Huge pages are reserved now, or the guest's first touch would end the process with SIGBUS.
  const int flags = MAP_FIXED | (huge ? 0 : MAP_NORESERVE) |
                    (fd.valid() ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
  // SAFETY: MAP_FIXED replaces only what the reservation above owns: [at, at + size).
  void* const host =
      ::mmap(reinterpret_cast<void*>(at), size, PROT_READ | PROT_WRITE, flags, fd.get(), 0);
  if (host == MAP_FAILED) {
    const int error = errno;
    ::munmap(reinterpret_cast<void*>(at), size);
    return mapping_error(range.size, backing, error);
  }
  Mapping mapping(static_cast<uint8_t*>(host), size, std::move(fd));
  // Advice: a kernel without THP or core dumps of this kind refuses it, and nothing is lost.
  if (!huge) (void)::madvise(host, size, options.thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  (void)::madvise(host, size, MADV_DONTDUMP);
  return Result<Mapping>(std::move(mapping));
}

Result<std::unique_ptr<GuestMemory>> GuestMemory::create(std::span<const Range> ranges,
                                                         const GuestMemoryOptions& options) {
  MemoryMap map;
  std::vector<Mapping> mappings;
  mappings.reserve(ranges.size());
  uint64_t end_before = 0;
  for (const Range& range : ranges) {
    LETHE_ASSERT(range.size > 0 && range.size % kPageBytes == 0);
    LETHE_ASSERT(range.start.value % kPageBytes == 0 && range.start.value >= end_before);
    LETHE_ASSERT(range.start.plus(range.size).has_value());
    LETHE_ASSERT(options.backing != MemoryBacking::kHugetlb ||
                 range.start.value % kHugePageBytes == 0);
    end_before = range.start.value + range.size;
    LETHE_TRY_ASSIGN(Mapping mapping, Mapping::create(range, options));
    map.regions.push_back({.start = range.start,
                           .size = range.size,
                           .host = mapping.host,
                           .fd = mapping.fd.get(),
                           .removable = false,
                           .backing = options.backing});
    mappings.push_back(std::move(mapping));
  }
  return std::unique_ptr<GuestMemory>(new GuestMemory(std::move(map), std::move(mappings)));
}

GuestMemory::GuestMemory(MemoryMap map, std::vector<Mapping> mappings)
    : x_map(std::move(map)), x_mappings(std::move(mappings)) {}

GuestMemory::~GuestMemory() = default;

bool GuestMemory::read(GuestAddr address, std::span<uint8_t> to) const {
  const MapGuard guard = map();
  const MemoryRegion* const region = guard->find(address, to.size());
  if (region == nullptr) return false;
  // SAFETY: find() checked that the whole range lies in the region's mapping.
  if (!to.empty())
    std::memcpy(to.data(), region->host + (address.value - region->start.value), to.size());
  return true;
}

bool GuestMemory::write(GuestAddr address, std::span<const uint8_t> from) const {
  const MapGuard guard = map();
  const MemoryRegion* const region = guard->find(address, from.size());
  if (region == nullptr) return false;
  // SAFETY: find() checked that the whole range lies in the region's mapping.
  if (!from.empty())
    std::memcpy(region->host + (address.value - region->start.value), from.data(), from.size());
  return true;
}

std::optional<IoSlice> GuestMemory::slice(GuestAddr address, uint64_t length) const {
  const MapGuard guard = map();
  return guard->slice(address, length);
}

Result<> GuestMemory::add_region(GuestAddr start, uint64_t size, uint8_t* host) {
  LETHE_ASSERT(host != nullptr && size > 0 && size % kPageBytes == 0);
  LETHE_ASSERT(start.value % kPageBytes == 0 && start.plus(size).has_value());
  bool overlaps = false;
  x_map.update([&](MemoryMap& map) {
    auto& regions = map.regions;
    overlaps = std::any_of(regions.begin(), regions.end(), [&](const MemoryRegion& region) {
      return start.value < region.start.value + region.size &&
             region.start.value < start.value + size;
    });
    if (overlaps) return;
    const auto after = std::find_if(regions.begin(), regions.end(),
                                    [&](const MemoryRegion& r) { return r.start > start; });
    regions.insert(after, {.start = start,
                           .size = size,
                           .host = host,
                           .fd = -1,
                           .removable = true,
                           .backing = MemoryBacking::kAnonymous});
  });
  if (overlaps)
    return host_error("guest memory at {:#x}, {}, overlaps another region", start.value,
                      size_text(size));
  return {};
}

bool GuestMemory::remove_region(GuestAddr start) {
  bool found = false;
  x_map.update([&](MemoryMap& map) {
    found = std::erase_if(map.regions, [&](const MemoryRegion& region) {
              return region.removable && region.start == start;
            }) > 0;
  });
  // A copy that found the region in an older version may be under way: wait until it has left.
  if (found) x_map.reclaim();
  return found;
}

std::vector<MemoryRegion> GuestMemory::regions() const { return map()->regions; }

uint64_t GuestMemory::total_bytes() const {
  uint64_t total = 0;
  for (const MemoryRegion& region : map()->regions) {
    if (!region.removable) total += region.size;
  }
  return total;
}

uint64_t GuestMemory::resident_bytes() const {
  uint64_t total = 0;
  for (const MemoryRegion& region : regions()) {
    if (region.removable) continue;
    const auto mapped = region.backing == MemoryBacking::kAnonymous
                            ? MemoryOps::system().mapped(region.host, region.size)
                            : std::nullopt;
    total += mapped ? *mapped : lethe::resident_bytes(region.host, region.size);
  }
  return total;
}

}  // namespace lethe
