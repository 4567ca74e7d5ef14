// A guest's memory with its scanner, joined to a balloon: what is freed here goes back to the host.
//
//   free() -> buddy.h -> scanner.h -> descriptors of the reporting queue -> the host
//   allocate() <- buddy.h <- done() <-------- used elements <----------------'
#pragma once

#include <stdint.h>

#include "kernel/buddy.h"
#include "kernel/scanner.h"
#include "kernel/virtio/balloon.h"

namespace kernel {

class MemoryReturn {
 public:
  // Takes all of alloc_pages()' memory but `keep` bytes, as two zones. The host is taken to back
  // none of it yet. The device must have a reporting queue, or nothing is reported.
  void init(BalloonDriver& balloon, const ScannerOptions& options,
            uint64_t keep = uint64_t{4} << 20);

  // A block of 2^order pages, or kNoMemory. What is away with the host for a moment is waited for
  // before it gives up: reporting never makes a guest run out of memory.
  uint64_t allocate(unsigned order);
  void free(uint64_t address);

  // Takes what the host is done with, and tells it of more if it is time.
  void poll();
  // Tells the host of everything that is free and waits until it has forgotten it.
  void flush();
  // The same with the device gone: after its reset.
  void abandon() { scanner_.abandon(); }

  // Free page hinting: if the host's command asks for it, allocates free blocks down to a reserve,
  // hands them over, and frees them when the host is done. Whether it did.
  bool hint();
  // Grows or shrinks the balloon to the host's target, a block at a time. Whether it did.
  bool follow_target();
  uint64_t ballooned_bytes() const { return ballooned_ * block_bytes(kBlockOrder); }

  const Scanner& scanner() const { return scanner_; }
  Zone& zone(size_t i) { return zones_[i]; }
  uint64_t free_bytes() const { return zones_[0].free_bytes() + zones_[1].free_bytes(); }

 private:
  static constexpr unsigned kBlockOrder = 9;  // of hints and of the balloon
  static constexpr size_t kBlocksMax = 1024;

  void reap();
  void feed();
  void send_pfns(uint64_t block, bool inflate);

  BalloonDriver* balloon_ = nullptr;
  Zone zones_[2];
  Scanner scanner_;
  uint32_t hint_served_ = VIRTIO_BALLOON_CMD_ID_STOP;
  uint64_t balloon_blocks_[kBlocksMax] = {};
  size_t ballooned_ = 0;
};

}  // namespace kernel
