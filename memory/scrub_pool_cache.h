// The scrub pool's chunks as a cache of the shrinker's.
#pragma once

#include <algorithm>
#include <atomic>

#include "memory/scrub_pool.h"
#include "memory/shrinker.h"

namespace lethe {

// Any thread. A purge lowers the pool's size for a moment, which gives chunks back, clean ones
// first, and puts it back; a chunk that the guest returns in that moment is discarded instead.
class ScrubPoolCache final : public ShrinkableCache {
 public:
  explicit ScrubPoolCache(ScrubPool& pool) : x_pool(pool) {}
  [[nodiscard]] std::string_view name() const override { return "scrub_pool"; }
  [[nodiscard]] uint64_t object_bytes() const override { return kChunkBytes; }
  [[nodiscard]] uint64_t count() const override {
    // A chunk that is being scrubbed is left to its scrubber.
    const ScrubPool::Stats stats = x_pool.stats();
    return (stats.clean_bytes + stats.dirty_bytes) / kChunkBytes;
  }
  [[nodiscard]] uint64_t purged_bytes() const override {
    return x_purged.load(std::memory_order_relaxed);
  }
  [[nodiscard]] Scanned scan(uint64_t objects_max) override {
    const ScrubPool::Stats before = x_pool.stats();
    const uint64_t there = before.clean_bytes + before.dirty_bytes;
    const uint64_t bytes = std::min(there / kChunkBytes, objects_max) * kChunkBytes;
    if (bytes == 0) return {};
    x_pool.set_bytes_max(there - bytes);
    x_pool.set_bytes_max(before.bytes_max);
    // The pool's own count of what it gave to the host: the guest may have taken or returned chunks
    // meanwhile.
    const uint64_t freed = std::min(bytes, x_pool.stats().trimmed_bytes - before.trimmed_bytes);
    x_purged.fetch_add(freed, std::memory_order_relaxed);
    return {.freed = freed / kChunkBytes, .asked = 0};
  }

 private:
  ScrubPool& x_pool;
  std::atomic<uint64_t> x_purged{0};
};

}  // namespace lethe
