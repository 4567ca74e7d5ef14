// A snapshot's file `memory`: guest RAM, region after region, with holes where the guest has
// nothing; and the table of what is in it, which is part of the file `state`.
//
// The table has blocks of 64 KiB: which of their 16 pages are in the file, and the XXH3 checksum of
// those. Pages that were never touched, that the guest gave back, or that hold only zeros are not
// in it: they cost nothing.
//
// Threading: any one thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/state.h"
#include "memory/guest_memory.h"

namespace lethe {

inline constexpr uint64_t kBlockBytes = 64 * kKiB;
inline constexpr uint64_t kBlockPages = kBlockBytes / kPageBytes;

struct MemoryBlock {
  uint32_t number = 0;  // kBlockBytes * number is its place in the file
  uint16_t pages = 0;   // bit i: page i is in the file; not 0
  uint64_t sum = 0;     // of those pages, one after the other
  [[nodiscard]] uint64_t offset() const { return kBlockBytes * number; }
};

struct MemoryTable {
  uint64_t bytes = 0;                         // of the file: all RAM
  std::vector<MemoryBlock> blocks;            // by number
  [[nodiscard]] uint64_t bytes_used() const;  // of pages in the file
};

// A run of pages of a block, in bytes from its start.
struct PageRun {
  uint32_t offset = 0;
  uint32_t bytes = 0;
};
// The runs of ones in `pages`, at most 8.
struct PageRuns {
  std::array<PageRun, kBlockPages / 2> runs;
  size_t count = 0;
  [[nodiscard]] auto begin() const { return runs.begin(); }
  [[nodiscard]] auto end() const { return runs.begin() + static_cast<ptrdiff_t>(count); }
};
[[nodiscard]] PageRuns runs_of(uint16_t pages);

// The checksum of a block's pages; `block`: kBlockBytes, of which only `pages` count.
[[nodiscard]] uint64_t block_sum(const uint8_t* block, uint16_t pages);

// Writes RAM into the empty file. Nobody changes guest memory meanwhile. Touches no page that is
// not there. Error (kHost): one line without the file's name.
[[nodiscard]] Result<MemoryTable> write_memory(const GuestMemory& memory, int fd);

void save_table(const MemoryTable& table, StateWriter& to);
// `bytes`: of the RAM that the config asks for; a table for another size is an error.
[[nodiscard]] Result<MemoryTable> restore_table(uint64_t bytes, StateReader& from);

// Reads the block's pages to their places in `to` (kBlockBytes) and checks them. Error (kConfig):
// the file was altered or ends early; (kHost): it can't be read.
[[nodiscard]] Result<> read_block(int fd, const MemoryBlock& block, uint8_t* to);

}  // namespace lethe
