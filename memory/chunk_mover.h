// How a 2 MiB chunk's pages go from guest memory to the pool's arena and back.
//
// Threading: any thread; of calls for the same chunk or slot, one at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "memory/pool_ops.h"
#include "memory/scrub_pool.h"
#include "memory/userfault.h"

namespace lethe {

class ChunkCarrier {
 public:
  virtual ~ChunkCarrier() = default;
  // Moves all pages from guest memory to an empty slot of the arena. On an error `moved` bytes from
  // the start are in the slot and no longer in the guest.
  [[nodiscard]] virtual MoveOutcome carry_out(uint8_t* guest, uint8_t* slot) = 0;
  // Moves all pages of a slot to a hole in guest memory; wakes nobody. On an error
  // `moved` bytes from the start are in guest memory; what the slot still has is the caller's to
  // discard. Guest memory stays mapped whatever happens.
  [[nodiscard]] virtual MoveOutcome carry_in(uint8_t* slot, uint8_t* guest) = 0;
  // False when it is used up: no more chunks may be carried (too many mappings).
  [[nodiscard]] virtual bool usable() const { return true; }
  [[nodiscard]] virtual ChunkMover kind() const = 0;
};

// UFFDIO_MOVE: page table entries change hands under the page table locks; no mapping is split.
[[nodiscard]] std::unique_ptr<ChunkCarrier> make_userfault_carrier(const Userfault& userfault);

// mremap: for kernels before 6.8.
//
// Out: MREMAP_DONTUNMAP leaves the guest's mapping, with its userfault registration, in place.
// In: MREMAP_FIXED replaces the guest's 2 MiB of mapping by the slot's under the address space's
// write lock: a page fault of another thread, KVM's included, waits and sees one or the other. The
// kernel makes sure beforehand that it has mappings to spare (mremap_to() in mm/mremap.c); it can
// fail half-way only when it can't allocate one structure of some 200 bytes, which it does not
// before it kills processes. Both ways look after every failure whether the target is still
// mapped, and maps it anew if not, at once and without touching anything else
// (MAP_FIXED_NOREPLACE).
//
// Each chunk that was ever given back is a mapping of its own, which splits the guest's. So they
// are counted: usable() turns false when they reach a quarter of vm.max_map_count.
[[nodiscard]] std::unique_ptr<ChunkCarrier> make_mremap_carrier(const Userfault& userfault,
                                                                PoolOps& ops, bool huge_pages);

}  // namespace lethe
