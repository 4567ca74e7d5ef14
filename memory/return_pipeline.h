// The return pipeline: what a guest gave back (balloon inflate, free page reporting, free page
// hinting) on its way to the host. DESIGN 4.2.
//
// Ranges are validated whole, merged across descriptors, and forgotten by the policy in force.
// Memory use is constant: a fixed number of ranges, and at most `isolated_max` bytes of them, are
// held at a time; the owner of the queue keeps its descriptors until flush() has returned.
//
//   for each chain: for each range: if (add(...) == kFull) { flush(); complete chains; add again }
//   flush(); complete the chains
//
// Threading: one thread (the balloon's) adds and flushes; policy, poison and metrics may be set and
// read by any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/histogram.h"
#include "base/metrics.h"
#include "memory/guest_memory.h"

namespace lethe {

inline constexpr uint64_t kChunkBytes = 2 * kMiB;  // what the scrub pool deals in: a huge page

enum class ReturnSource : uint8_t { kInflate, kReport, kHint };
inline constexpr size_t kReturnSources = 3;

// How returned memory is forgotten. `auto` of the config is not one of these: the governor sets
// kPool or kDiscard.
enum class ReturnPolicy : uint8_t {
  kPool,     // whole 2 MiB chunks go to the scrub pool; the rest, and what it refuses, is discarded
  kDiscard,  // MADV_DONTNEED; memfd and hugetlb: fallocate(PUNCH_HOLE)
  kLazy,     // MADV_FREE (anonymous; elsewhere as kDiscard): readable until the host needs it
};

// Where whole chunks can go instead of being discarded (the scrub pool).
class ChunkTaker {
 public:
  virtual ~ChunkTaker() = default;
  // Moves the chunk at `host` (2 MiB aligned, private anonymous guest memory) out of guest memory:
  // when it returns true the old content can't be read there any more. False: nothing happened
  // (pool full, switched off, pinned page...), the caller discards. Any thread but the fault thread.
  [[nodiscard]] virtual bool take(uint8_t* host) = 0;
};

// The system calls that give memory back; tests make them fail. Return 0 or an errno value.
class MemoryOps {
 public:
  virtual ~MemoryOps() = default;
  [[nodiscard]] virtual int advise(uint8_t* host, uint64_t size, int advice);       // madvise
  [[nodiscard]] virtual int punch_hole(int fd, uint64_t offset, uint64_t size);     // fallocate
  static MemoryOps& system();
};

}  // namespace lethe
