// The scrub pool: 2 MiB chunks that the guest gave back, kept in this process to be given to it
// again. DESIGN 4.3.
//
//   guest memory --take()--> Dirty --worker--> Scrubbing --> Clean --fault--> Taken --> guest memory
//
// A chunk's state is one atomic, changed by compare-exchange only. Scrubbing never takes a chunk off
// a list; who needs a chunk takes a clean one, else scrubs a dirty one itself, else makes a fresh
// one; it never waits for more than one chunk's scrub and never fails because chunks are being
// scrubbed.
//
// (Contract sketch. Owner of this file: the scrub pool's author; the names below are what others
// build against.)
#pragma once

#include <cstdint>
#include <memory>

#include "memory/return_pipeline.h"

namespace lethe {

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
[[nodiscard]] ChunkMoverProbe probe_chunk_mover();

struct ScrubPoolOptions {
  uint64_t bytes_max = 0;          // what the pool may hold; 0: no pool
  uint32_t workers = 1;
  bool scrub_at_map = false;       // policy: dirty chunks wait, and are scrubbed when mapped
  std::chrono::milliseconds forget_max{1000};  // older dirty chunks are discarded
};

class ScrubPool : public ChunkTaker {
 public:
  // `memory` must outlive the pool; the pool must outlive every thread that touches guest memory.
  // Costs nothing until the first take(): threads, userfaultfd and arena are made then.
  [[nodiscard]] static std::unique_ptr<ScrubPool> create(const GuestMemory& memory,
                                                         const ScrubPoolOptions& options);
  [[nodiscard]] bool take(uint8_t* host) override = 0;
  // Any thread. Lowering it gives chunks back to the host, clean ones first.
  virtual void set_bytes_max(uint64_t bytes) = 0;
  // What returned memory must read as when the guest touches it again (VIRTIO_BALLOON_F_PAGE_POISON;
  // 0 without it): every 4 bytes. Set before the driver goes live; chunks scrubbed otherwise are
  // scrubbed again.
  virtual void set_poison(uint32_t value) = 0;
  // True while a returned range can be made to read as the poison value.
  [[nodiscard]] virtual bool honours_poison() const = 0;
  virtual void report_metrics(MetricSink& sink) const = 0;
  struct Stats {
    uint64_t dirty_bytes = 0, scrubbing_bytes = 0, clean_bytes = 0, bytes_max = 0;
    uint64_t moved_bytes = 0, refaulted_bytes = 0, scrubbed_bytes = 0, expired_bytes = 0;
  };
  [[nodiscard]] virtual Stats stats() const = 0;
};

}  // namespace lethe
