// The simple free-page scanner: finds free memory that the host does not know of, and takes it a
// little at a time to where the host is told.
//
//   free()          nothing but a count (FreeArea::nr_freed)
//   due()           the count says that high_water blocks came to a list since the last look
//   next()          take the first block that is not reported, while no more than isolated_max
//                   bytes are away; its address and size go into a descriptor as they are
//   done(address)   the host has it forgotten: back to the end of its list, marked
//
// It scans after the free, not at it: memory that is used again soon costs nothing, a burst of
// frees costs one wake-up, and if the host is slow, nothing is queued or dropped; it just takes
// longer. Nothing is allocated for a block that is reported: a record of the page says that it is
// away. isolated_max bounds what an allocation can miss, so that no guest runs out of memory
// because of its scanner. One thread scans.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernel/buddy.h"

namespace kernel {

inline constexpr size_t kZonesMax = 4;

struct ScannerOptions {
  uint64_t isolated_max = uint64_t{64} << 20;  // bytes; at least the largest block
  unsigned order_min = 9;                      // smaller blocks are not reported
  uint64_t high_water = 16;                    // blocks that came to one list
};

struct FreeBlock {
  uint64_t address = kNoMemory;
  uint64_t bytes = 0;
};

class Scanner {
 public:
  // The zones' report_order must be `options.order_min`. They must outlive the scanner.
  void init(Zone* zones, size_t zone_count, const ScannerOptions& options);

  // To be asked after frees: is it worth a scan? A few loads for each zone.
  bool due() const;
  // Starts a scan: when due(), or when the guest is idle (then what is below high water goes too).
  void wake() { awake_ = true; }
  bool awake() const { return awake_; }

  // The next block to tell the host of. False: isolated_max is reached, come back after done(); or
  // there are no more, and the scanner sleeps.
  bool next(FreeBlock& block);
  // The block at this address is back. `reported` false: the host did not take it (the device was
  // reset); it will be found again.
  void done(uint64_t address, bool reported);
  // The device was reset: nothing that is away will be answered; all of it is back, not reported.
  void abandon();

  uint64_t isolated_bytes() const { return isolated_; }
  uint64_t isolated_most() const { return isolated_most_; }
  uint64_t reported_bytes() const { return reported_; }

 private:
  Zone& zone_of(uint64_t address);

  Zone* zones_ = nullptr;
  size_t zone_count_ = 0;
  ScannerOptions options_;
  bool awake_ = false;
  uint64_t seen_[kZonesMax][kOrderMax + 1] = {};  // FreeArea::came() when the list was last done
  uint64_t isolated_ = 0;
  uint64_t isolated_most_ = 0;
  uint64_t reported_ = 0;
};

}  // namespace kernel
