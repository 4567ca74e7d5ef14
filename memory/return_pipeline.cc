#include "memory/return_pipeline.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"

namespace lethe {
namespace {

// Ranges no further apart than this share one look at what is resident: a look at a huge page costs
// as much as at a few small ones, and a system call more than both.
constexpr uint64_t kLookGap = 4 * kMiB;

static_assert(ReturnPipeline::kBatchParts <= UIO_MAXIOV);
static_assert(ReturnPipeline::kBatchBytes + ReturnPipeline::kPieceBytes < 2 * kGiB);

std::vector<MemoryRegion> ram_of(const GuestMemory& memory) {
  std::vector<MemoryRegion> regions = memory.regions();
  std::erase_if(regions, [](const MemoryRegion& region) { return region.removable; });
  return regions;
}

void count(std::atomic<uint64_t>& counter, uint64_t amount) {
  counter.fetch_add(amount, std::memory_order_relaxed);
}

}  // namespace

ReturnPipeline::ReturnPipeline(const GuestMemory& memory, ReturnPipelineOptions options)
    : x_memory(memory),
      x_options(std::move(options)),
      x_ops(x_options.ops != nullptr ? *x_options.ops : MemoryOps::system()),
      x_regions(ram_of(memory)) {}

const MemoryRegion* ReturnPipeline::find(GuestAddr start, uint64_t bytes) const {
  if (bytes == 0 || (start.value | bytes) % kPageBytes != 0) return nullptr;
  for (const MemoryRegion& region : x_regions)
    if (region.contains(start, bytes)) return &region;
  return nullptr;
}

bool ReturnPipeline::valid(GuestAddr start, uint64_t bytes) const {
  return find(start, bytes) != nullptr;
}

ReturnPipeline::Added ReturnPipeline::refuse(ReturnSource source) {
  count(x_counters.refused[static_cast<size_t>(source)], 1);
  return Added::kRefused;
}

ReturnPipeline::Added ReturnPipeline::add(GuestAddr start, uint64_t bytes, ReturnSource source) {
  const MemoryRegion* const region = find(start, bytes);
  if (region == nullptr) return refuse(source);
  return add(*region, start.value - region->start.value, bytes, source);
}

ReturnPipeline::Added ReturnPipeline::add(const IoSlice& slice, ReturnSource source) {
  for (const MemoryRegion& region : x_regions) {
    if (slice.data < region.host || slice.data >= region.host + region.size) continue;
    const auto offset = static_cast<uint64_t>(slice.data - region.host);
    const GuestAddr start{region.start.value + offset};
    return valid(start, slice.size) ? add(region, offset, slice.size, source) : refuse(source);
  }
  return refuse(source);
}

ReturnPipeline::Added ReturnPipeline::add(const MemoryRegion& region, uint64_t offset,
                                          uint64_t bytes, ReturnSource source) {
  const bool too_much = x_held_bytes > 0 && bytes > x_options.isolated_max - x_held_bytes;
  if (x_flushing || x_count == kRangesMax || too_much) return Added::kFull;
  if (!x_ranges) {  // at the first return: who returns nothing pays nothing
    x_ranges = std::make_unique_for_overwrite<std::array<Range, kRangesMax>>();
    x_seen = std::make_unique_for_overwrite<std::array<uint8_t, kPieceBytes / kPageBytes>>();
    x_batch = std::make_unique_for_overwrite<Batch>();
  }
  if (x_count == 0) x_oldest = std::chrono::steady_clock::now();
  const bool reported = source == ReturnSource::kReport;
  Range* const last = x_count > 0 ? &(*x_ranges)[x_count - 1] : nullptr;
  const auto index = static_cast<uint16_t>(&region - x_regions.data());
  // Drivers hand out runs: most ranges go on where the last one ended.
  if (last != nullptr && last->region == index && last->offset + last->bytes == offset &&
      last->reported == reported) {
    last->bytes += bytes;
    count(x_counters.merged, 1);
    count(x_counters.merged_bytes, bytes);
  } else {
    (*x_ranges)[x_count++] = {offset, bytes, index, reported};
  }
  x_held_bytes = std::min(x_held_bytes + bytes, x_options.isolated_max);
  count(x_counters.ranges, 1);
  count(x_counters.taken[static_cast<size_t>(source)], bytes);
  count(x_counters.isolated, bytes);
  if (isolated() > x_counters.isolated_highest.load(std::memory_order_relaxed))
    x_counters.isolated_highest.store(isolated(), std::memory_order_relaxed);
  return Added::kTaken;
}

void ReturnPipeline::given_back(uint64_t bytes) {
  x_counters.isolated.fetch_sub(std::min(bytes, isolated()), std::memory_order_relaxed);
}

void ReturnPipeline::set_poison(uint32_t value) {
  if (value == x_poison) return;
  x_poison = value;
  if (x_options.poison_changed) x_options.poison_changed(value);
}

// What overlaps or touches becomes one range. Where a report overlaps what is none, all of it is
// treated as reported: it must read as the poison value.
void ReturnPipeline::sort_and_merge() {
  Range* const ranges = x_ranges->data();
  const auto before = [](const Range& a, const Range& b) {
    return a.region != b.region ? a.region < b.region : a.offset < b.offset;
  };
  if (!std::is_sorted(ranges, ranges + x_count, before))
    std::sort(ranges, ranges + x_count, before);
  size_t kept = 0;
  for (size_t i = 1; i < x_count; ++i) {
    Range& last = ranges[kept];
    const Range& next = ranges[i];
    const uint64_t end = last.offset + last.bytes;
    const bool overlaps = last.region == next.region && next.offset < end;
    const bool touches = last.region == next.region && next.offset == end;
    if (!overlaps && !(touches && last.reported == next.reported)) {
      ranges[++kept] = next;
      continue;
    }
    const uint64_t next_end = next.offset + next.bytes;
    count(x_counters.merged, 1);
    count(x_counters.merged_bytes, next.bytes);
    if (overlaps) count(x_counters.repeated, std::min(end, next_end) - next.offset);
    last.bytes = std::max(end, next_end) - last.offset;
    last.reported |= next.reported;
  }
  x_count = kept + 1;
}

bool ReturnPipeline::flush() {
  if (x_count == 0) return true;
  if (!x_flushing) sort_and_merge();
  x_flushing = true;
  x_seen_bytes = 0;
  x_split_chunk = nullptr;
  const auto deadline = std::chrono::steady_clock::now() + x_options.wake_time_max;
  uint64_t left = x_options.wake_bytes_max;
  while (x_next < x_count) {
    const Range& range = (*x_ranges)[x_next];
    const uint64_t piece = std::min(range.bytes - x_done, kPieceBytes);
    forget(x_regions[range.region], range.offset + x_done, piece, range.reported);
    x_done += piece;
    if (x_done == range.bytes) {
      ++x_next;
      x_done = 0;
    }
    left -= std::min(left, piece);
    if (x_next < x_count && (left == 0 || std::chrono::steady_clock::now() >= deadline)) {
      discard_batch();
      count(x_counters.budget_ends, 1);
      return false;
    }
  }
  discard_batch();
  x_latency.add(std::chrono::steady_clock::now() - x_oldest);
  x_count = x_next = 0;
  x_held_bytes = 0;
  x_flushing = false;
  return true;
}

void ReturnPipeline::flush_all() {
  while (!flush()) {
  }
}

// At most a piece. Whole chunks go to the taker if that is the policy; the runs in between, and
// what it refuses, are forgotten in place.
void ReturnPipeline::forget(const MemoryRegion& region, uint64_t offset, uint64_t bytes,
                            bool reported) {
  // Before anything is discarded: what comes later would bring the old content back. Memory that
  // must read as the poison value later has to be there, to be known as such.
  if (x_options.pending != nullptr) {
    if (reported && x_poison != 0)
      x_options.pending->fetch(region.host + offset, bytes);
    else
      x_options.pending->drop(region.host + offset, bytes);
  }
  if (!reported || policy() != ReturnPolicy::kPool || x_options.taker == nullptr ||
      region.backing != MemoryBacking::kAnonymous ||
      (x_poison != 0 && !x_options.taker->honours_poison()))
    return forget_in_place(region, offset, bytes, reported);
  // SAFETY: add() checked that the range lies in the region. Host and guest addresses are congruent
  // modulo 2 MiB, but a region may start anywhere.
  const uint64_t skew = reinterpret_cast<uintptr_t>(region.host) % kChunkBytes;
  const uint64_t end = offset + bytes;
  uint64_t run = offset;  // [run, at) is still to be forgotten
  uint64_t at = (offset + skew + kChunkBytes - 1) / kChunkBytes * kChunkBytes - skew;
  for (; at < end && kChunkBytes <= end - at; at += kChunkBytes) {
    if (!x_options.taker->take(region.host + at)) continue;
    count(x_counters.moved, kChunkBytes);
    if (at > run) forget_in_place(region, run, at - run, reported);
    run = at + kChunkBytes;
  }
  if (run < end) forget_in_place(region, run, end - run, reported);
}

void ReturnPipeline::forget_in_place(const MemoryRegion& region, uint64_t offset, uint64_t bytes,
                                     bool reported) {
  const uint32_t value = reported ? x_poison : 0;
  const bool comes_back =
      value == 0 || (region.backing == MemoryBacking::kAnonymous && x_options.taker != nullptr &&
                     x_options.taker->honours_poison());
  if (comes_back)
    discard(region, offset, bytes, value);
  else
    overwrite(region, offset, bytes, value);
}

// `value` is what it must read as if the host refuses.
void ReturnPipeline::discard(const MemoryRegion& region, uint64_t offset, uint64_t bytes,
                             uint32_t value) {
  const Part part{.region = &region,
                  .offset = offset,
                  .bytes = bytes,
                  .resident = count_resident(region, offset, bytes),
                  .value = value};
  // A memory file keeps its pages when they are unmapped: only a hole frees them.
  if (region.backing != MemoryBacking::kAnonymous)
    return settle(part, x_ops.punch_hole(region.fd, offset, bytes));
  if (policy() == ReturnPolicy::kLazy) {
    if (x_ops.advise(region.host + offset, bytes, MADV_FREE) == 0) {
      count(x_counters.lazy, part.resident);
      count(x_counters.absent, bytes - part.resident);
      return;
    }
    count(x_counters.host_failures, 1);
  }
  if (part.resident > 0) split_at_ends(part);
  discard_later(part);
}

// Most of what a discard costs is that every processor which runs the guest must forget the range,
// too: they are told once a batch.
void ReturnPipeline::discard_later(const Part& part) {
  x_batch->ranges[x_batched] = {.iov_base = part.region->host + part.offset, .iov_len = part.bytes};
  x_batch->parts[x_batched] = part;
  ++x_batched;
  x_batched_bytes += part.bytes;
  if (x_batched == kBatchParts || x_batched_bytes >= kBatchBytes) discard_batch();
}

// What the one call does not do, because the kernel has no such call or fails at a part, is done
// part by part.
void ReturnPipeline::discard_batch() {
  const std::span<const iovec> ranges(x_batch->ranges.data(), x_batched);
  const size_t together = ranges.size() > 1 ? x_ops.advise_all(ranges, MADV_DONTNEED) : 0;
  for (size_t i = 0; i < ranges.size(); ++i) {
    auto* const host = static_cast<uint8_t*>(ranges[i].iov_base);
    settle(x_batch->parts[i],
           i < together ? 0 : x_ops.advise(host, ranges[i].iov_len, MADV_DONTNEED));
  }
  x_batched = 0;
  x_batched_bytes = 0;
}

// The host has discarded the part, or refused (`error`): then it is overwritten.
void ReturnPipeline::settle(const Part& part, int error) {
  if (error == 0) {
    // Of a file of huge pages only whole ones go; the kernel overwrites parts (Linux 5.19).
    const uint64_t freed = part.region->backing == MemoryBacking::kHugetlb
                               ? resident_in_huge_pages(*part.region, part.offset, part.bytes)
                               : part.resident;
    count(x_counters.freed, freed);
    count(x_counters.overwritten, part.resident - freed);
    count(x_counters.absent, part.bytes - part.resident);
    return;
  }
  count(x_counters.host_failures, 1);
  LETHE_LOG_LIMITED(LogModule::kMemory,
                    "cannot give {} KiB of guest memory back: {}; overwrote them instead",
                    part.bytes / kKiB, errno_text(error));
  overwrite(*part.region, part.offset, part.bytes, part.value);
}

// MADV_DONTNEED of a part of a huge page only unmaps it: the page stays whole, and charged, until
// the kernel runs short and splits it. MADV_FREE splits a huge page that it is given a part of
// (Linux 4.5 to 6.18 at least; some 100 us), after which the part is really freed.
void ReturnPipeline::split_at_ends(const Part& part) {
  uint8_t* const host = part.region->host + part.offset;
  const auto begin = reinterpret_cast<uintptr_t>(host);
  const uint64_t head = std::min(part.bytes, (kChunkBytes - begin % kChunkBytes) % kChunkBytes);
  const uint64_t tail = part.bytes > head ? (begin + part.bytes) % kChunkBytes : 0;
  if (head > 0) split_huge_page(host, head);
  if (tail > 0) split_huge_page(host + (part.bytes - tail), tail);
}

// [host, host + bytes) is a part of one chunk. Ranges are sorted: once a chunk is enough.
void ReturnPipeline::split_huge_page(uint8_t* host, uint64_t bytes) {
  const uint8_t* const chunk = host - reinterpret_cast<uintptr_t>(host) % kChunkBytes;
  if (chunk == x_split_chunk) return;
  x_split_chunk = chunk;
  // Advice: if it is refused, the discard that follows still forgets the content.
  (void)x_ops.advise(host, bytes, MADV_FREE);
}

uint64_t ReturnPipeline::resident_in_huge_pages(const MemoryRegion& region, uint64_t offset,
                                                uint64_t bytes) {
  const uint64_t begin = (offset + kChunkBytes - 1) / kChunkBytes * kChunkBytes;
  const uint64_t end = (offset + bytes) / kChunkBytes * kChunkBytes;
  return begin < end ? count_resident(region, begin, end - begin) : 0;
}

// At most a piece. What is not there is left alone: to write would take memory from the host, and
// there is nothing to forget.
void ReturnPipeline::overwrite(const MemoryRegion& region, uint64_t offset, uint64_t bytes,
                               uint32_t value) {
  uint8_t* const host = region.host + offset;
  x_seen_bytes = 0;  // its buffer is used for another question
  const std::span<uint8_t> pages(x_seen->data(), bytes / kPageBytes);
  if (x_ops.exists(host, region.fd, offset, pages) != 0) std::ranges::fill(pages, uint8_t{1});
  for (size_t page = 0; page < pages.size();) {
    size_t end = page + 1;
    while (end < pages.size() && pages[end] == pages[page]) ++end;
    if (pages[page] != 0)
      overwrite_pages(host + page * kPageBytes, (end - page) * kPageBytes, value);
    else
      count(x_counters.absent, (end - page) * kPageBytes);
    page = end;
  }
}

void ReturnPipeline::overwrite_pages(uint8_t* host, uint64_t bytes, uint32_t value) {
  // SAFETY: the range is guest RAM, in whole pages; add() checked it. The guest gave it away.
  if (value == 0)
    std::memset(host, 0, bytes);
  else
    std::fill_n(reinterpret_cast<uint32_t*>(host), bytes / sizeof value, value);
  count(x_counters.overwritten, bytes);
}

uint64_t ReturnPipeline::count_resident(const MemoryRegion& region, uint64_t offset,
                                        uint64_t bytes) {
  const uint8_t* const host = region.host + offset;
  if (region.backing == MemoryBacking::kAnonymous)
    if (const auto mapped = x_ops.mapped(host, bytes)) return *mapped;
  if (host < x_seen_host || host + bytes > x_seen_host + x_seen_bytes)
    look_ahead(region, offset, bytes);
  const uint8_t* const first = x_seen->data() + (host - x_seen_host) / kPageBytes;
  uint64_t pages = 0;
  for (const uint8_t* page = first; page != first + bytes / kPageBytes; ++page) pages += *page & 1;
  return pages * kPageBytes;
}

// Looks at [offset, offset + bytes), and in the same call at the ranges that follow soon after.
void ReturnPipeline::look_ahead(const MemoryRegion& region, uint64_t offset, uint64_t bytes) {
  uint64_t end = offset + bytes;
  for (size_t i = x_next; i < x_count; ++i) {
    const Range& range = (*x_ranges)[i];
    const uint64_t range_end = range.offset + range.bytes;
    if (&x_regions[range.region] != &region || range.offset > end + kLookGap) break;
    end = std::max(end, std::min(range_end, offset + kPieceBytes));
    if (range_end > offset + kPieceBytes) break;
  }
  x_seen_host = region.host + offset;
  x_seen_bytes = end - offset;
  const std::span<uint8_t> pages(x_seen->data(), x_seen_bytes / kPageBytes);
  // Only counters depend on it.
  if (x_ops.resident(x_seen_host, pages) != 0) std::ranges::fill(pages, uint8_t{1});
}

}  // namespace lethe
