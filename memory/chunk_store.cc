#include "memory/chunk_store.h"

#include <sys/mman.h>

#include "memory/scrub.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace lethe {
namespace {

using std::chrono::nanoseconds;
using std::chrono::steady_clock;

uint64_t to_ns(steady_clock::time_point time) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<nanoseconds>(time.time_since_epoch()).count());
}
uint64_t now_ns() { return to_ns(steady_clock::now()); }

void add_one(std::atomic<uint64_t>& counter) { counter.fetch_add(1, std::memory_order_relaxed); }

uint8_t* align_up(uint8_t* at) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  return at + ((kChunkBytes - address % kChunkBytes) % kChunkBytes);
}

}  // namespace

struct ChunkStore::Memory {
  ChunkStore& store;
  void scrub(size_t slot) const {
    store.scrub_slot(slot, store.x_value.load(std::memory_order_relaxed));
  }
  void discard(size_t slot) const { store.discard(slot); }
  void scrubbed(const Table::Claim& claim) const { forgotten(claim); }
  void expired(const Table::Claim& claim) const {
    add_one(store.x_counters.expired);
    forgotten(claim);
  }
  void freed() const { store.x_held.fetch_sub(1, std::memory_order_relaxed); }
  void forgotten(const Table::Claim& claim) const {
    const uint64_t now = now_ns();
    store.x_counters.forget.add(nanoseconds(now > claim.since_ns ? now - claim.since_ns : 0));
  }
};

std::unique_ptr<ChunkStore> ChunkStore::create(size_t slots, bool huge_pages, ChunkCarrier& carrier,
                                               PoolOps& ops, PoolCounters& counters) {
  // One slot more for the fault thread's fresh chunks, and room to align.
  const uint64_t bytes = (slots + 2) * kChunkBytes;
  void* const area = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) return nullptr;
  (void)::madvise(area, bytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  (void)::madvise(area, bytes, MADV_DONTDUMP);
  return std::unique_ptr<ChunkStore>(
      new ChunkStore(static_cast<uint8_t*>(area), bytes, slots, carrier, ops, counters));
}

ChunkStore::ChunkStore(uint8_t* area, uint64_t area_bytes, size_t slots, ChunkCarrier& carrier,
                       PoolOps& ops, PoolCounters& counters)
    : x_carrier(carrier),
      x_ops(ops),
      x_counters(counters),
      x_area(area),
      x_area_bytes(area_bytes),
      x_arena(align_up(area)),
      x_table(slots),
      x_left_over(new std::atomic<bool>[slots]()),
      x_scrubbed_with(new uint32_t[slots]()) {}

ChunkStore::~ChunkStore() { ::munmap(x_area, x_area_bytes); }

uint64_t ChunkStore::arena_bytes() const { return (x_table.size() + 1) * kChunkBytes; }

// SAFETY: slot <= size(): the arena has one slot more than the table.
uint8_t* ChunkStore::at(size_t slot) const { return x_arena + slot * kChunkBytes; }

void ChunkStore::scrub_slot(size_t slot, uint32_t value) {
  scrub(at(slot), kChunkBytes, value);
  x_scrubbed_with[slot] = value;
  add_one(x_counters.scrubbed);
}

void ChunkStore::discard(size_t slot) {
  const bool failed = x_ops.advise(at(slot), kChunkBytes, MADV_DONTNEED) != 0;
  // The kernel has no memory to split or unmap with (tests say so). Forgotten it must be.
  if (failed) scrub(at(slot), kChunkBytes, 0);
  set_left_over(slot, failed);
}

// The exchange: an expirer and a worker may both discard a slot; each change counts once.
void ChunkStore::set_left_over(size_t slot, bool value) {
  if (x_left_over[slot].exchange(value, std::memory_order_acq_rel) == value) return;
  if (value) {
    x_left_overs.fetch_add(1, std::memory_order_relaxed);
    x_held.fetch_add(1, std::memory_order_relaxed);
  } else {
    x_left_overs.fetch_sub(1, std::memory_order_relaxed);
    x_held.fetch_sub(1, std::memory_order_relaxed);
  }
}

// For the slot's owner. False: there are still pages, and no others can be moved there.
bool ChunkStore::empty_out(size_t slot) {
  if (!x_left_over[slot].load(std::memory_order_acquire)) return true;
  if (x_ops.advise(at(slot), kChunkBytes, MADV_DONTNEED) != 0) return false;
  set_left_over(slot, false);
  return true;
}

void ChunkStore::retry_left_over() {
  // One look at each slot, or nearly: others search too. A miss is for the next time.
  for (size_t n = 0; n < x_table.size() && x_left_overs.load(std::memory_order_relaxed) > 0; ++n) {
    const auto claim = x_table.take_empty();
    if (!claim) return;
    (void)empty_out(claim->slot);
    x_table.put_empty(claim->slot);
  }
}

void ChunkStore::free_taken(size_t slot) {
  x_table.put_empty(slot);
  x_held.fetch_sub(1, std::memory_order_relaxed);
}

bool ChunkStore::take_in(uint8_t* guest, uint64_t bytes_max) {
  retry_left_over();
  if ((x_held.fetch_add(1, std::memory_order_relaxed) + 1) * kChunkBytes > bytes_max) {
    x_held.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  const auto claim = x_table.take_empty();
  if (!claim) {
    x_held.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  if (!empty_out(claim->slot)) {
    free_taken(claim->slot);
    add_one(x_counters.refused);
    return false;
  }
  const uint64_t since = now_ns();
  const MoveOutcome outcome = x_carrier.carry_out(guest, at(claim->slot));
  if (outcome.error != 0) {
    if (outcome.moved > 0) discard(claim->slot);
    free_taken(claim->slot);
    add_one(x_counters.refused);
    return false;
  }
  add_one(x_counters.moved);
  x_table.put_dirty(claim->slot, since);
  return true;
}

bool ChunkStore::give(const Table::Claim& claim, uint8_t* guest) {
  const MoveOutcome outcome = x_carrier.carry_in(at(claim.slot), guest);
  if (outcome.error != 0) {
    discard(claim.slot);
    add_one(x_counters.lost);
  }
  free_taken(claim.slot);
  return outcome.error == 0;
}

bool ChunkStore::give_clean(uint8_t* guest, uint32_t value) {
  const auto claim = x_table.take_clean();
  if (!claim) return false;
  if (x_scrubbed_with[claim->slot] != value) scrub_slot(claim->slot, value);
  return give(*claim, guest);
}

bool ChunkStore::give_kept(uint8_t* guest, uint32_t value) {
  if (give_clean(guest, value)) return true;
  const auto claim = x_table.take_dirty();
  if (!claim) return false;
  scrub_slot(claim->slot, value);
  Memory{*this}.forgotten(*claim);
  return give(*claim, guest);
}

bool ChunkStore::give_fresh(uint8_t* guest, uint32_t value) {
  uint8_t* const fresh = at(x_table.size());
  if (x_ops.advise(fresh, kChunkBytes, MADV_POPULATE_WRITE) == 0) {
    if (value != 0) scrub(fresh, kChunkBytes, value);
    if (x_carrier.carry_in(fresh, guest).error == 0) return true;
  }
  // What stays is the next fresh chunk.
  if (x_ops.advise(fresh, kChunkBytes, MADV_DONTNEED) != 0) scrub(fresh, kChunkBytes, 0);
  return false;
}

bool ChunkStore::scrub_one() {
  Memory memory{*this};
  return x_table.scrub_one(memory) != Table::Scrubbed::kNothing;
}

void ChunkStore::set_scrub_value(uint32_t value) {
  if (x_value.exchange(value, std::memory_order_relaxed) == value) return;
  // Not more often than there are slots: a worker may give back clean ones meanwhile.
  for (size_t n = 0; n < x_table.size(); ++n) {
    const auto claim = x_table.take_clean();
    if (!claim) return;
    x_table.put_dirty(claim->slot, now_ns());
  }
}

void ChunkStore::expire(steady_clock::time_point taken_before) {
  Memory memory{*this};
  x_table.expire(to_ns(taken_before), memory);
}

bool ChunkStore::trim(uint64_t bytes_max) {
  retry_left_over();
  while (x_held.load(std::memory_order_relaxed) * kChunkBytes > bytes_max)
    if (!drop_one()) return false;
  return true;
}

bool ChunkStore::drop_one() {
  auto claim = x_table.take_clean();
  const bool clean = claim.has_value();
  if (!clean) claim = x_table.take_dirty();
  if (!claim) return false;
  discard(claim->slot);
  if (!clean) Memory{*this}.forgotten(*claim);
  free_taken(claim->slot);
  add_one(x_counters.trimmed);
  return true;
}

bool ChunkStore::any_dirty() const {
  const auto counts = x_table.count();
  return counts[static_cast<size_t>(ChunkState::kDirty)] > 0 ||
         counts[static_cast<size_t>(ChunkState::kScrubbing)] > 0;
}

}  // namespace lethe
