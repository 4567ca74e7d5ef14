// Guest RAM: its host mappings, and the only ways by which devices may touch it.
//
// Two ways: copies (`read`, `write`), and an IoSlice: a range validated once by `slice()` and then
// used once, by a system call or a copy. What a guest wrote must be copied out before it is judged:
// the guest may change it between two looks (double fetch).
//
// Lookups are lock free on every thread (RcuCell). RAM regions stay mapped for the life of the
// GuestMemory, so an IoSlice stays valid for as long as that lives. Regions that come and go
// (device memory) are reached by copies only: no slice of them is ever handed out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "base/rcu_cell.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_addr.h"

namespace lethe {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;
inline constexpr uint64_t kTiB = 1024 * kGiB;

inline constexpr uint64_t kPageBytes = 4 * kKiB;  // x86-64's pages, the guest's and the host's
inline constexpr uint64_t kHugePageBytes = 2 * kMiB;

// A validated range of guest memory in this process. `data` is stable; its content is not: the
// guest may write it at any time. Use once.
struct IoSlice {
  uint8_t* data = nullptr;
  size_t size = 0;
};

enum class MemoryBacking : uint8_t {
  kAnonymous,  // private anonymous memory
  kShared,     // one sealed memfd a region, shared mapping (for vhost-user)
  kHugetlb,    // one memfd of 2 MiB huge pages a region, shared mapping
};

struct GuestMemoryOptions {
  MemoryBacking backing = MemoryBacking::kAnonymous;
  bool thp = true;  // madvise(MADV_HUGEPAGE); anonymous and shared only
};

// A region of guest memory, as the memory map knows it.
struct MemoryRegion {
  GuestAddr start;
  uint64_t size = 0;        // bytes, a multiple of 4096
  uint8_t* host = nullptr;  // RAM: congruent to `start` modulo 2 MiB
  int fd = -1;              // the memfd behind it, -1 if anonymous
  bool removable = false;   // added by add_region(): device memory, not RAM
  MemoryBacking backing = MemoryBacking::kAnonymous;  // of RAM

  [[nodiscard]] bool contains(GuestAddr address, uint64_t length) const {
    // Written so that nothing can overflow: address >= start is checked first.
    return address >= start && address.value - start.value <= size &&
           length <= size - (address.value - start.value);
  }
};

// One version of the memory map: sorted by start, not overlapping.
struct MemoryMap {
  std::vector<MemoryRegion> regions;
  // The region that holds the whole range, or none.
  [[nodiscard]] const MemoryRegion* find(GuestAddr address, uint64_t length) const {
    // A handful of regions: a scan beats a binary search.
    for (const MemoryRegion& region : regions) {
      if (region.contains(address, length)) return &region;
    }
    return nullptr;
  }
  // See GuestMemory::slice().
  [[nodiscard]] std::optional<IoSlice> slice(GuestAddr address, uint64_t length) const {
    // Not by find(): an empty range where RAM begins may lie at device memory's end, too.
    for (const MemoryRegion& region : regions) {
      if (region.removable || !region.contains(address, length)) continue;
      // SAFETY: contains() checked that the range lies in the region.
      return IoSlice{region.host + (address.value - region.start.value), length};
    }
    return std::nullopt;
  }
};

class GuestMemory {
 public:
  struct Range {
    GuestAddr start;
    uint64_t size = 0;
  };

  // Reserves (lazily: no page is touched) one region a range. `ranges` are sorted, page aligned
  // (hugetlb: start 2 MiB aligned), not empty and do not overlap (else a programmer error). Fails
  // when the host refuses the mapping; the error says how much was asked for.
  [[nodiscard]] static Result<std::unique_ptr<GuestMemory>> create(std::span<const Range> ranges,
                                                                   const GuestMemoryOptions&);
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  // Copies; false, with nothing copied, unless the whole range lies in one region. Any thread.
  [[nodiscard]] bool read(GuestAddr address, std::span<uint8_t> to) const;
  [[nodiscard]] bool write(GuestAddr address, std::span<const uint8_t> from) const;

  template <typename T>
    requires std::is_trivially_copyable_v<T>
  [[nodiscard]] std::optional<T> load(GuestAddr address) const {
    T value;
    // SAFETY: T is trivially copyable, and the span covers exactly the object.
    if (!read(address, {reinterpret_cast<uint8_t*>(&value), sizeof value})) return std::nullopt;
    return value;
  }
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  [[nodiscard]] bool store(GuestAddr address, const T& value) const {
    // SAFETY: as above.
    return write(address, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
  }

  // The whole range as one slice; nothing unless it lies in one region of RAM. A length of 0 gives
  // an empty slice if the address is inside a region or at its end. Any thread.
  [[nodiscard]] std::optional<IoSlice> slice(GuestAddr address, uint64_t length) const;

  // The memory map as it is now, held for as long as the guard lives: for several lookups in a row.
  // Any thread; see RcuCell for what a thread may not do meanwhile.
  using MapGuard = RcuCell<MemoryMap>::ReadGuard;
  [[nodiscard]] MapGuard map() const { return x_map.read(); }

  // Adds memory that belongs to the caller and may be removed again: device memory behind a BAR.
  // Page aligned (else a programmer error). Fails if it overlaps another region. Any thread that
  // holds no guard.
  [[nodiscard]] Result<> add_region(GuestAddr start, uint64_t size, uint8_t* host);
  // Removes a region that add_region() added; false if there is none at `start`. When it returns no
  // copy touches the region any more, on any thread: the caller may unmap its memory at once. Any
  // thread that holds no guard.
  bool remove_region(GuestAddr start);

  // The regions now, for KVM memory slots, boot and statistics. Any thread.
  [[nodiscard]] std::vector<MemoryRegion> regions() const;
  [[nodiscard]] uint64_t total_bytes() const;  // RAM
  // Bytes of RAM that the host holds now. Takes some 10 us a GiB of huge pages, up to 1 ms of small
  // ones. Any thread.
  [[nodiscard]] uint64_t resident_bytes() const;

 private:
  struct Mapping;  // owns one mmap and its memfd
  GuestMemory(MemoryMap map, std::vector<Mapping> mappings);
  RcuCell<MemoryMap> x_map;
  std::vector<Mapping> x_mappings;
};

}  // namespace lethe
