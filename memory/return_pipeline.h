// The return pipeline: what a guest gave back (balloon inflate, free page reporting, free page
// hinting) on its way to the host: docs/memory.md.
//
// Ranges are validated whole, merged across descriptors, and forgotten by the policy in force: when
// flush() has returned true, none of them can be read through guest memory any more (kLazy
// excepted), whatever the host refused meanwhile. Memory use is constant: a fixed number of ranges;
// at most `isolated_max` bytes of them are held at a time, or one chain's if that alone is larger.
// The owner of the queue keeps its descriptors until then:
//
//   for each chain, for each range: while (add(...) == kFull) flush();
//   while (!flush()) come back later;      // false: this wake-up's budget is used up
//   complete the chains; given_back(bytes that add() took of them)
//
// Threading: one thread (the balloon's) adds, flushes and gives back; policy, metrics and counters
// may be set and read by any thread.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/histogram.h"
#include "base/metrics.h"
#include "memory/guest_memory.h"
#include "memory/memory_ops.h"

namespace lethe {

inline constexpr uint64_t kChunkBytes = kHugePageBytes;  // what the scrub pool deals in

enum class ReturnSource : uint8_t { kInflate, kReport, kHint };
inline constexpr size_t kReturnSources = 3;

// How returned memory is forgotten. `auto` of the config is not one of these: the governor sets
// kPool or kDiscard.
enum class ReturnPolicy : uint8_t {
  kPool,     // whole 2 MiB chunks of reports go to the scrub pool; everything else is discarded
  kDiscard,  // MADV_DONTNEED; memfd and hugetlb: fallocate(PUNCH_HOLE)
  kLazy,     // MADV_FREE (anonymous; elsewhere as kDiscard): readable until the host needs it
};

// "pool", "discard", "lazy": as config, API and metrics call them.
[[nodiscard]] const char* policy_name(ReturnPolicy policy);

// Where whole chunks can go instead of being discarded (the scrub pool).
class ChunkTaker {
 public:
  virtual ~ChunkTaker() = default;
  // Moves the chunk at `host` (2 MiB aligned, private anonymous guest memory) out of guest memory:
  // when it returns true the old content can't be read there any more. False: nothing happened
  // (pool full, switched off, pinned page...), the caller discards. Any thread but the fault
  // thread.
  [[nodiscard]] virtual bool take(uint8_t* host) = 0;
  // True while memory that was there and is discarded reads as the poison value when it is touched
  // again (userfaults). Any thread.
  [[nodiscard]] virtual bool honours_poison() const { return false; }
};

// Guest memory that was restored from a snapshot, of which some has not come out of its file yet.
// Any thread.
class PendingMemory {
 public:
  virtual ~PendingMemory() = default;
  // What has not come yet of the range (whole pages) never will: it reads as zeros.
  virtual void drop(const uint8_t* host, uint64_t size) = 0;
  // All of the range is there when it returns.
  virtual void fetch(const uint8_t* host, uint64_t size) = 0;
  // All has come: for good.
  [[nodiscard]] virtual bool complete() const = 0;
};

struct ReturnPipelineOptions {
  uint64_t isolated_max = 64 * kMiB;  // bytes taken from the guest and not yet given back
  ChunkTaker* taker = nullptr;        // none: kPool discards
  PendingMemory* pending = nullptr;   // none: all memory is there
  MemoryOps* ops = nullptr;           // none: the system's
  // Runs when set_poison() changes the value, before anything is returned under it: for the pool.
  std::function<void(uint32_t)> poison_changed = {};
  // One flush() does no more than this, and then a piece of at most kPieceBytes and what of the
  // batch has not been discarded yet, less than kBatchBytes.
  uint64_t wake_bytes_max = 1 * kGiB;
  std::chrono::microseconds wake_time_max{10'000};
};

// What was done with returned memory, in bytes unless said otherwise. The pipeline's thread writes,
// any thread reads. Of the ranges that were taken, each byte is in exactly one of `moved`, `freed`,
// `lazy`, `overwritten` and `absent`, and in `repeated` if a range held it twice before a flush.
struct ReturnCounters {
  std::array<std::atomic<uint64_t>, kReturnSources> taken{};    // add() == kTaken
  std::array<std::atomic<uint64_t>, kReturnSources> refused{};  // ranges that broke a rule
  std::atomic<uint64_t> ranges{0};                              // ranges taken
  std::atomic<uint64_t> merged{0};        // ranges that became part of another one
  std::atomic<uint64_t> merged_bytes{0};  // what those ranges held
  std::atomic<uint64_t> repeated{0};
  std::atomic<uint64_t> moved{0};             // to the ChunkTaker
  std::atomic<uint64_t> freed{0};             // resident before, and given to the host
  std::atomic<uint64_t> lazy{0};              // MADV_FREE: the host takes it when it needs it
  std::atomic<uint64_t> overwritten{0};       // forgotten in place: not given back
  std::atomic<uint64_t> absent{0};            // there was nothing there
  std::atomic<uint64_t> host_failures{0};     // system calls that failed
  std::atomic<uint64_t> budget_ends{0};       // flushes that ended with work left
  std::atomic<uint64_t> isolated{0};          // now
  std::atomic<uint64_t> isolated_highest{0};  // ever
};

class ReturnPipeline {
 public:
  static constexpr size_t kRangesMax = 1024;
  static constexpr uint64_t kPieceBytes = 16 * kMiB;
  // Anonymous memory is discarded by one system call for so many parts of ranges, or so many bytes
  // (a piece more at most), and at the end of each flush().
  static constexpr size_t kBatchParts = 256;
  static constexpr uint64_t kBatchBytes = 64 * kMiB;

  enum class Added : uint8_t {
    kTaken,
    kFull,     // nothing changed: flush() first
    kRefused,  // empty, not in whole pages, or not wholly in one region of RAM; counted
  };

  // `memory`, taker and ops must outlive the pipeline.
  explicit ReturnPipeline(const GuestMemory& memory, ReturnPipelineOptions options = {});

  // The pipeline's thread.
  [[nodiscard]] Added add(GuestAddr start, uint64_t bytes, ReturnSource source);
  // The same for a slice of guest memory.
  [[nodiscard]] Added add(const IoSlice& slice, ReturnSource source);
  // Whether add() would not refuse it.
  [[nodiscard]] bool valid(GuestAddr start, uint64_t bytes) const;
  // A flush ended before its work: add() takes nothing now.
  [[nodiscard]] bool flushing() const { return x_flushing; }
  // Forgets what add() took. True: all of it is done. False: the budget is used up; call again.
  [[nodiscard]] bool flush();
  // The same, however long it takes.
  void flush_all();
  // The guest has `bytes` of what was taken back: no longer isolated.
  void given_back(uint64_t bytes);
  [[nodiscard]] uint64_t isolated() const {
    return x_counters.isolated.load(std::memory_order_relaxed);
  }
  [[nodiscard]] uint64_t isolated_max() const { return x_options.isolated_max; }
  // Reported memory reads as this afterwards, 4 bytes each (VIRTIO_BALLOON_F_PAGE_POISON; 0 without
  // it), or as it was, if there was nothing there. Where the taker can't bring it back like that
  // (honours_poison()), what is there is overwritten in place and not returned. Inflated and hinted
  // pages have no content (virtio 1.2, 5.5.6, 5.5.6.5).
  void set_poison(uint32_t value);

  // Any thread. A flush under way may still follow the policy before.
  void set_policy(ReturnPolicy policy) { x_policy.store(policy, std::memory_order_relaxed); }
  [[nodiscard]] ReturnPolicy policy() const { return x_policy.load(std::memory_order_relaxed); }
  [[nodiscard]] const ReturnCounters& counters() const { return x_counters; }
  // From add() to the end of the flush that forgot it, one sample a flush: its oldest range.
  [[nodiscard]] Histogram::Snapshot forget_latency() const { return x_latency.snapshot(); }
  [[nodiscard]] const GuestMemory& memory() const { return x_memory; }
  void report_metrics(MetricSink& sink) const;

 private:
  // A range of guest memory, validated. Sorted by region and offset once flush() has begun.
  struct Range {
    uint64_t offset = 0;  // in the region
    uint64_t bytes = 0;
    uint16_t region = 0;  // of x_regions
    // Reported by the guest of its own accord: only this may be kept in the pool, and must read as
    // the poison value. What the host asked for, by balloon or hints, is for the host.
    bool reported = false;
  };

  // A part of a range, at most a piece, that is to be discarded.
  struct Part {
    const MemoryRegion* region = nullptr;
    uint64_t offset = 0;  // in the region
    uint64_t bytes = 0;
    uint64_t resident = 0;  // of them, before
    uint32_t value = 0;     // what it must read as if the host refuses
  };

  [[nodiscard]] const MemoryRegion* find(GuestAddr start, uint64_t bytes) const;
  Added refuse(ReturnSource source);
  Added add(const MemoryRegion& region, uint64_t offset, uint64_t bytes, ReturnSource source);
  void sort_and_merge();
  void forget(const MemoryRegion& region, uint64_t offset, uint64_t bytes, bool reported);
  void forget_in_place(const MemoryRegion& region, uint64_t offset, uint64_t bytes, bool reported);
  void discard(const MemoryRegion& region, uint64_t offset, uint64_t bytes, uint32_t value);
  void discard_later(const Part& part);
  void discard_batch();
  void settle(const Part& part, int error);
  void split_at_ends(const Part& part);
  [[nodiscard]] uint64_t resident_in_huge_pages(const MemoryRegion& region, uint64_t offset,
                                                uint64_t bytes);
  void split_huge_page(uint8_t* host, uint64_t bytes);
  void overwrite(const MemoryRegion& region, uint64_t offset, uint64_t bytes, uint32_t value);
  void overwrite_pages(uint8_t* host, uint64_t bytes, uint32_t value);
  [[nodiscard]] uint64_t count_resident(const MemoryRegion& region, uint64_t offset,
                                        uint64_t bytes);
  void look_ahead(const MemoryRegion& region, uint64_t offset, uint64_t bytes);

  const GuestMemory& x_memory;
  const ReturnPipelineOptions x_options;
  MemoryOps& x_ops;
  const std::vector<MemoryRegion> x_regions;  // RAM: it stays for the life of the memory
  std::atomic<ReturnPolicy> x_policy{ReturnPolicy::kDiscard};
  uint32_t x_poison = 0;

  // What is held: [x_next, x_count) is still to be forgotten, the first from x_done bytes on.
  std::unique_ptr<std::array<Range, kRangesMax>> x_ranges;
  size_t x_count = 0;
  size_t x_next = 0;
  uint64_t x_done = 0;
  uint64_t x_held_bytes = 0;
  bool x_flushing = false;
  std::chrono::steady_clock::time_point x_oldest;

  // Parts that wait for discard_batch(): only inside a flush(). As the call wants them, and what
  // they are.
  struct Batch {
    std::array<iovec, kBatchParts> ranges;
    std::array<Part, kBatchParts> parts;
  };
  std::unique_ptr<Batch> x_batch;
  size_t x_batched = 0;
  uint64_t x_batched_bytes = 0;

  // Which pages were resident, from x_seen_host on: one look serves the ranges near each other.
  std::unique_ptr<std::array<uint8_t, kPieceBytes / 4096>> x_seen;
  const uint8_t* x_seen_host = nullptr;
  uint64_t x_seen_bytes = 0;
  const uint8_t* x_split_chunk = nullptr;  // the last huge page that was split in this flush

  ReturnCounters x_counters;
  Histogram x_latency;
};

}  // namespace lethe
