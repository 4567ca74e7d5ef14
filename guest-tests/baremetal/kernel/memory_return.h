// A guest's memory with its scanner, joined to a balloon: what is freed here goes back to the host.
//
//   free() -> buddy.h -> scanner.h -> descriptors of the reporting queue -> the host
//   allocate() <- buddy.h <- done() <-------- used elements <----------------'
#pragma once

#include <stdint.h>

#include "kernel/buddy.h"
#include "kernel/memory.h"
#include "kernel/scanner.h"
#include "kernel/virtio/balloon.h"

namespace kernel {

class MemoryReturn {
 public:
  // Takes all of alloc_pages()' memory but `keep` bytes, as two zones. The host is taken to back
  // none of it yet. The device must have a reporting queue, or nothing is reported.
  void init(BalloonDriver& balloon, const ScannerOptions& options,
            uint64_t keep = uint64_t{4} << 20);

  // A block of 2^order pages, or kNoMemory. What is away with the host for a moment is waited for,
  // and what was hinted is taken back, before it gives up: no guest runs out of memory because it
  // tells its host what is free.
  uint64_t allocate(unsigned order);
  void free(uint64_t address);

  // Takes what the host is done with, and tells it of more if it is time.
  void poll();
  // Tells the host of everything that is free and waits until it has forgotten it.
  void flush();
  // The same with the device gone: after its reset.
  void abandon() { scanner_.abandon(); }

  // Free page hinting (virtio 1.2, section 5.5.6.5): at a command that is new, allocates free
  // blocks down to a reserve and hands them over, until there are no more or the host has enough.
  // They stay out of use until the host is done, so that none is hinted twice; then they are freed.
  // Whether there was something to do.
  bool hint();
  // Grows or shrinks the balloon towards the host's target by a block, or what is missing. Whether
  // it did.
  bool follow_target();
  uint64_t ballooned_bytes() const { return uint64_t{ballooned_pages_} * kPageSize; }

  const Scanner& scanner() const { return scanner_; }
  Zone& zone(size_t i) { return zones_[i]; }
  uint64_t free_bytes() const { return zones_[0].free_bytes() + zones_[1].free_bytes(); }

 private:
  static constexpr unsigned kBlockOrder = 9;  // of hints and of the balloon
  static constexpr size_t kBlocksMax = 1024;

  uint64_t take(unsigned order);
  void reap();
  void feed();
  void send_pfns(uint64_t address, uint32_t count, bool inflate);

  BalloonDriver* balloon_ = nullptr;
  Zone zones_[2];
  Scanner scanner_;
  uint32_t hint_served_ = VIRTIO_BALLOON_CMD_ID_STOP;
  uint64_t hinted_[kBlocksMax] = {};
  size_t hinted_count_ = 0;
  // Of all blocks in the balloon but the last, every page is.
  uint64_t ballooned_[kBlocksMax] = {};
  uint32_t ballooned_pages_ = 0;
};

}  // namespace kernel
