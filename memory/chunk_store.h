// The pool's memory: an arena of 2 MiB slots, their states, and the ways of a chunk in and out.
//
// Threading: any thread, but give_fresh() and expire() are the fault thread's.
#pragma once

#include <chrono>
#include <memory>

#include "base/histogram.h"
#include "memory/chunk_mover.h"
#include "memory/chunk_table.h"

namespace lethe {

// What the pool did, in chunks or bytes; relaxed atomics, read by anyone.
struct PoolCounters {
  std::atomic<uint64_t> moved{0};  // chunks taken from the guest
  std::atomic<uint64_t> refused{0};
  std::atomic<uint64_t> by_pool{0};       // chunks given back for a fault,
  std::atomic<uint64_t> by_neighbour{0};  // ahead of one,
  std::atomic<uint64_t> by_fresh{0};      // or made anew for one
  std::atomic<uint64_t> small_bytes{0};   // filled page by page
  std::atomic<uint64_t> scrubbed{0};      // chunks, by anyone
  std::atomic<uint64_t> expired{0};       // chunks discarded because nobody scrubbed them in time
  std::atomic<uint64_t> trimmed{0};       // chunks discarded because the pool had to be smaller
  std::atomic<uint64_t> lost{0};          // chunks discarded because they could not be moved
  std::atomic<uint64_t> stalls{0};
  Histogram forget;
  Histogram refault;
};

class ChunkStore {
 public:
  // Reserves address space for `slots` chunks. Nothing if the host refuses that.
  [[nodiscard]] static std::unique_ptr<ChunkStore> create(size_t slots, bool huge_pages,
                                                          ChunkCarrier& carrier, PoolOps& ops,
                                                          PoolCounters& counters);
  ~ChunkStore();
  ChunkStore(const ChunkStore&) = delete;
  ChunkStore& operator=(const ChunkStore&) = delete;

  [[nodiscard]] uint8_t* arena() const { return x_arena; }
  [[nodiscard]] uint64_t arena_bytes() const;

  // Guest to pool, as a dirty chunk. False: the pool holds `bytes_max`, or the chunk can't be moved
  // (some of it may have been discarded then).
  [[nodiscard]] bool take_in(uint8_t* guest, uint64_t bytes_max);

  // Pool to a hole in guest memory; every 4 bytes of it read as `value`. give_clean() gives a clean
  // chunk, give_kept() that, or a dirty one that it scrubs first; give_fresh() makes a new one.
  // False: there is none, or it could not be moved.
  [[nodiscard]] bool give_clean(uint8_t* guest, uint32_t value);
  [[nodiscard]] bool give_kept(uint8_t* guest, uint32_t value);
  [[nodiscard]] bool give_fresh(uint8_t* guest, uint32_t value);

  // A worker's step: scrubs one dirty chunk with the value of set_scrub_value(); false if there is
  // none.
  bool scrub_one();
  // Later scrubs write it; clean chunks of another value are scrubbed again.
  void set_scrub_value(uint32_t value);

  // Discards what was taken at that time or before and is not clean yet.
  void expire(std::chrono::steady_clock::time_point taken_before);
  // Discards chunks, clean ones first, until the pool holds no more than that. What others have in
  // hand stays; false if that is still too much.
  bool trim(uint64_t bytes_max);
  // Discards one chunk, a clean one if there is one; false if there is none that nobody has in
  // hand.
  bool drop_one();

  [[nodiscard]] std::array<size_t, kChunkStates> count() const { return x_table.count(); }
  // Chunks that hold, or may hold, what a guest left there.
  [[nodiscard]] bool any_dirty() const;

 private:
  using Table = ChunkTable<>;
  struct Memory;  // what the table does with the arena
  ChunkStore(uint8_t* area, uint64_t area_bytes, size_t slots, ChunkCarrier& carrier, PoolOps& ops,
             PoolCounters& counters);
  [[nodiscard]] uint8_t* at(size_t slot) const;
  void scrub_slot(size_t slot, uint32_t value);
  void discard(size_t slot);
  void set_left_over(size_t slot, bool value);
  [[nodiscard]] bool empty_out(size_t slot);
  void retry_left_over();
  void free_taken(size_t slot);
  [[nodiscard]] bool give(const Table::Claim& claim, uint8_t* guest);

  ChunkCarrier& x_carrier;
  PoolOps& x_ops;
  PoolCounters& x_counters;
  uint8_t* const x_area;  // the mapping; the arena is its aligned part
  const uint64_t x_area_bytes;
  uint8_t* const x_arena;
  Table x_table;
  std::atomic<uint64_t> x_held{0};  // slots that are not empty, or about to be used
  std::atomic<uint32_t> x_value{0};
  // Slots whose pages the host would not discard: written over, and held until it does, though the
  // table calls them empty. x_held counts them.
  std::unique_ptr<std::atomic<bool>[]> x_left_over;
  std::atomic<size_t> x_left_overs{0};
  // What a clean slot was scrubbed with; its owner's.
  std::unique_ptr<uint32_t[]> x_scrubbed_with;
};

}  // namespace lethe
