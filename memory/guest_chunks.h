// Guest RAM as the scrub pool sees it: which 2 MiB chunks it has, which of them the pool has taken,
// and, for a poison value, which pages were ever there.
//
// Threading: any thread; make_flags() before others use the flags.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "memory/guest_memory.h"
#include "memory/page_map.h"

namespace lethe {

class GuestChunks {
 public:
  struct Region {
    uint8_t* host = nullptr;  // the region of guest memory, 4 KiB aligned
    uint64_t size = 0;
    uint8_t* chunks = nullptr;  // its chunks, 2 MiB aligned; parts of chunks at its ends are not in
    size_t chunk_count = 0;
    size_t first_chunk = 0;  // number of the first one
    uint64_t first_page = 0;
  };
  // Private anonymous RAM only: nothing else can be moved.
  explicit GuestChunks(const GuestMemory& memory);

  [[nodiscard]] const std::vector<Region>& regions() const { return x_regions; }
  // True if that is all RAM there is.
  [[nodiscard]] bool all_of_memory() const { return x_all && !x_regions.empty(); }
  [[nodiscard]] size_t chunk_count() const { return x_chunk_count; }
  // The region an address lies in, or null.
  [[nodiscard]] const Region* find(const uint8_t* at) const;
  // The number of the chunk it lies in; nothing if it lies in none that is wholly guest memory.
  [[nodiscard]] std::optional<size_t> chunk_at(const uint8_t* at) const;
  [[nodiscard]] uint8_t* host(size_t chunk) const;
  // True if both are chunks of one region.
  [[nodiscard]] bool same_region(size_t chunk, size_t other) const;

  // A hint: the pool took this chunk, and nobody has given it back yet.
  void make_flags() { x_taken.reset(new std::atomic<bool>[x_chunk_count]()); }
  [[nodiscard]] bool taken(size_t chunk) const {
    return x_taken[chunk].load(std::memory_order_relaxed);
  }
  void set_taken(size_t chunk, bool value) {
    x_taken[chunk].store(value, std::memory_order_relaxed);
  }

  // Remembers which pages are there now, besides what set_there() was and will be told; false if
  // that can't be found out. One thread at a time.
  [[nodiscard]] bool remember_pages(const PageMap& pages);
  enum class There : uint8_t { kNone, kSome, kAll };
  [[nodiscard]] There was_there(const uint8_t* at, uint64_t size) const;
  void set_there(const uint8_t* at, uint64_t size);

 private:
  [[nodiscard]] uint64_t page_number(const Region& region, const uint8_t* at) const;
  std::vector<Region> x_regions;
  bool x_all = true;
  size_t x_chunk_count = 0;
  uint64_t x_page_count = 0;
  std::unique_ptr<std::atomic<bool>[]> x_taken;
  // A bit a page, made by the first remember_pages(), set and never cleared.
  std::unique_ptr<std::atomic<uint64_t>[]> x_there_owner;
  std::atomic<std::atomic<uint64_t>*> x_there{nullptr};
};

}  // namespace lethe
