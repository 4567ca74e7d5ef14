// The scrub pool: 2 MiB chunks that the guest gave back, kept in this process to be given to it
// again: docs/memory.md, "The scrub pool".
//
//   guest memory --take()--> Dirty --worker--> Scrubbing --> Clean --fault--> Taken --> guest
//   memory
//
// A chunk's state is one atomic, changed by compare-exchange only (chunk_table.h). Scrubbing never
// takes a chunk off a list; who needs a chunk takes a clean one, else scrubs a dirty one itself,
// else makes a fresh one; it never waits for another thread's scrub and never fails because chunks
// are being scrubbed.
//
// Two kinds of threads, made at the first take(): `fault` answers the guest's touches of memory
// that is not there (fault_thread.h), and discards chunks that stay dirty for too long; `scrub0`...
// scrub at idle priority.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "memory/return_pipeline.h"

namespace lethe {

class PoolOps;

// How chunks move between guest memory and pool; found out by probing (probe_chunk_mover()).
enum class ChunkMover : uint8_t {
  kUserfaultMove,  // UFFDIO_MOVE (Linux 6.8)
  kMremap,         // mremap(MREMAP_DONTUNMAP), userfaults for the way back
  kNone,           // no userfaultfd for this process: plain discard
};
struct ChunkMoverProbe {
  ChunkMover mover = ChunkMover::kNone;
  std::string why;  // one line for `lethe doctor`: what was tried, and how to get a better one
};
// Tries the movers for real on 4 MiB of memory of its own: some 100 us, once a process; later calls
// repeat the answer. Any thread.
[[nodiscard]] ChunkMoverProbe probe_chunk_mover();
// The same with other system calls, each time anew.
[[nodiscard]] ChunkMoverProbe probe_chunk_mover(PoolOps& ops);

struct ScrubPoolOptions {
  uint64_t bytes_max = 0;     // what the pool may hold; 0: no pool
  uint32_t workers = 1;       // idle-priority threads, 16 at most
  bool scrub_at_map = false;  // policy: dirty chunks wait, and are scrubbed when mapped
  std::chrono::milliseconds forget_max{1000};  // older dirty chunks are discarded
  bool huge_pages =
      true;  // the guest's memory uses them: take() then refuses chunks of small pages
  // For tests: other system calls, another answer of the probe. `ops` must outlive the pool.
  PoolOps* ops = nullptr;
  std::optional<ChunkMoverProbe> probe{};
};

class ScrubPool : public ChunkTaker {
 public:
  // `memory` must outlive the pool; the pool must outlive every thread that touches guest memory.
  // Costs nothing until the first take(): threads, userfaultfd and arena are made then.
  [[nodiscard]] static std::unique_ptr<ScrubPool> create(const GuestMemory& memory,
                                                         const ScrubPoolOptions& options);
  // False as well for memory that is shared, of huge page files, partly or not at all there, or
  // pinned; some of a chunk may have been discarded then (the guest gave all of it). From the first
  // true on, every missing page of guest memory faults to the pool.
  [[nodiscard]] bool take(uint8_t* host) override = 0;
  // Any thread. Lowering it gives chunks back to the host, clean ones first; at 0 faults go to the
  // kernel again, unless a poison value has to be kept.
  virtual void set_bytes_max(uint64_t bytes) = 0;
  // What returned memory must read as when the guest touches it again
  // (VIRTIO_BALLOON_F_PAGE_POISON; 0 without it): every 4 bytes. Set before the driver goes live;
  // chunks scrubbed otherwise are scrubbed again. With a value other than 0 faults go to the pool
  // from now on: what is missing and was there when this was called, or later, was returned, and
  // reads as the value; what never was there reads as 0.
  virtual void set_poison(uint32_t value) = 0;
  // True while a returned range can be made to read as the poison value.
  [[nodiscard]] bool honours_poison() const override = 0;
  virtual void report_metrics(MetricSink& sink) const = 0;
  struct Stats {
    uint64_t dirty_bytes = 0, scrubbing_bytes = 0, clean_bytes = 0, bytes_max = 0;
    // By the pool's chunks, clean or dirty; ahead of their fault; by new memory; page by page.
    uint64_t moved_bytes = 0, refaulted_bytes = 0, neighbour_bytes = 0, fresh_bytes = 0;
    uint64_t small_bytes = 0;
    uint64_t scrubbed_bytes = 0, expired_bytes = 0, trimmed_bytes = 0;
    uint64_t refused = 0;         // takes that returned false for a chunk the pool had room for
    uint64_t lost_bytes = 0;      // could not be moved back, and were discarded
    uint64_t stalls = 0;          // faults that had to be tried again: no memory on the host
    Histogram::Snapshot forget;   // from take() to unreadable by anyone
    Histogram::Snapshot refault;  // from the fault's message to the memory's being there
  };
  [[nodiscard]] virtual Stats stats() const = 0;
};

}  // namespace lethe
