// The shrinker: gives back to the host what this process's caches keep, when the host needs it.
// docs/memory.md, "The shrinker".
//
// A cache says how much it could give (count()) and gives (scan()). A purge goes round: the next
// one starts at the cache after the last one asked, so that small purges do not always empty the
// same cache. Purging never stops a vCPU, never takes an object that a running operation has
// reserved (ObjectCache), and keeps no totals of its own: bytes() asks the caches, so it can't
// drift.
//
// Lock order: the shrinker's lock is taken before a cache's own. A cache must not call the shrinker
// from count() or scan().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/metrics.h"
#include "base/mutex.h"

namespace lethe {

class ShrinkableCache {
 public:
  virtual ~ShrinkableCache() = default;
  [[nodiscard]] virtual std::string_view name() const = 0;  // for metrics; outlives the cache's use
  [[nodiscard]] virtual uint64_t object_bytes() const = 0;  // of each object, above 0
  // Objects that scan() could give up now: not those in use, nor those reserved. Any thread.
  [[nodiscard]] virtual uint64_t count() const = 0;
  struct Scanned {
    uint64_t freed = 0;  // objects given back to the host
    uint64_t asked = 0;  // objects that the cache's own thread was asked to give back soon
  };
  // Gives up to `objects_max` objects back to the host. Any thread; does not wait for other threads
  // (but for a lock held for a few instructions).
  [[nodiscard]] virtual Scanned scan(uint64_t objects_max) = 0;
  // Bytes that scan() has given back so far. Any thread.
  [[nodiscard]] virtual uint64_t purged_bytes() const = 0;
};

class Shrinker {
 public:
  // Keeps a cache registered; its destructor waits for a purge under way. Must be destroyed before
  // the cache and the shrinker.
  class Registration {
   public:
    Registration() = default;
    Registration(Registration&& other) noexcept;
    Registration& operator=(Registration&& other) noexcept;
    ~Registration() { end(); }

   private:
    friend class Shrinker;
    Registration(Shrinker& shrinker, ShrinkableCache& cache)
        : x_shrinker(&shrinker), x_cache(&cache) {}
    void end();
    Shrinker* x_shrinker = nullptr;
    ShrinkableCache* x_cache = nullptr;
  };

  Shrinker() = default;
  ~Shrinker();
  Shrinker(const Shrinker&) = delete;
  Shrinker& operator=(const Shrinker&) = delete;

  // Any thread, as everything below. A cache is registered once (else a programmer error).
  [[nodiscard]] Registration add(ShrinkableCache& cache) LETHE_EXCLUDES(x_mutex);

  struct Purged {
    uint64_t freed_bytes = 0;
    uint64_t asked_bytes = 0;  // to be freed by the caches' own threads
    [[nodiscard]] uint64_t bytes() const { return freed_bytes + asked_bytes; }
  };
  // Asks each cache at most once, in turn, until `bytes` are found. Rounds up to whole objects.
  Purged purge(uint64_t bytes) LETHE_EXCLUDES(x_mutex);

  // What purging everything would give.
  [[nodiscard]] uint64_t bytes() const LETHE_EXCLUDES(x_mutex);
  void report_metrics(MetricSink& sink) const LETHE_EXCLUDES(x_mutex);

 private:
  void remove(ShrinkableCache& cache) LETHE_EXCLUDES(x_mutex);

  mutable Mutex x_mutex;
  std::vector<ShrinkableCache*> x_caches LETHE_GUARDED_BY(x_mutex);
  size_t x_next LETHE_GUARDED_BY(x_mutex) = 0;  // whose turn it is; below x_caches.size(), or 0
  uint64_t x_purges LETHE_GUARDED_BY(x_mutex) = 0;
};

}  // namespace lethe
