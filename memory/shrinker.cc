#include "memory/shrinker.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"

namespace lethe {

Shrinker::Registration::Registration(Registration&& other) noexcept
    : x_shrinker(std::exchange(other.x_shrinker, nullptr)), x_cache(other.x_cache) {}

Shrinker::Registration& Shrinker::Registration::operator=(Registration&& other) noexcept {
  if (this != &other) {
    end();
    x_shrinker = std::exchange(other.x_shrinker, nullptr);
    x_cache = other.x_cache;
  }
  return *this;
}

void Shrinker::Registration::end() {
  if (x_shrinker != nullptr) std::exchange(x_shrinker, nullptr)->remove(*x_cache);
}

Shrinker::~Shrinker() {
  MutexLock lock(x_mutex);
  LETHE_ASSERT(x_caches.empty());
}

Shrinker::Registration Shrinker::add(ShrinkableCache& cache) {
  MutexLock lock(x_mutex);
  LETHE_ASSERT(std::find(x_caches.begin(), x_caches.end(), &cache) == x_caches.end());
  LETHE_ASSERT(cache.object_bytes() > 0);
  x_caches.push_back(&cache);
  return {*this, cache};
}

void Shrinker::remove(ShrinkableCache& cache) {
  MutexLock lock(x_mutex);
  const auto at = std::find(x_caches.begin(), x_caches.end(), &cache);
  LETHE_ASSERT(at != x_caches.end());
  // The turn stays with the cache that has it, or goes to the one after the removed one.
  if (static_cast<size_t>(at - x_caches.begin()) < x_next) --x_next;
  x_caches.erase(at);
  if (x_next == x_caches.size()) x_next = 0;
}

Shrinker::Purged Shrinker::purge(uint64_t bytes) {
  MutexLock lock(x_mutex);
  Purged purged;
  ++x_purges;
  for (size_t asked = 0; asked < x_caches.size() && purged.bytes() < bytes; ++asked) {
    ShrinkableCache& cache = *x_caches[x_next];
    x_next = (x_next + 1) % x_caches.size();
    const uint64_t size = cache.object_bytes();
    const uint64_t missing = bytes - purged.bytes();
    const auto scanned = cache.scan(missing / size + (missing % size != 0 ? 1 : 0));
    purged.freed_bytes += scanned.freed * size;
    purged.asked_bytes += scanned.asked * size;
  }
  return purged;
}

uint64_t Shrinker::bytes() const {
  MutexLock lock(x_mutex);
  uint64_t sum = 0;
  for (const ShrinkableCache* cache : x_caches) sum += cache->count() * cache->object_bytes();
  return sum;
}

void Shrinker::report_metrics(MetricSink& sink) const {
  MutexLock lock(x_mutex);
  for (const ShrinkableCache* cache : x_caches) {
    sink.gauge("lethe_cache_purgeable_bytes", "What the shrinker could take from a cache",
               static_cast<double>(cache->count() * cache->object_bytes()),
               {{"cache", cache->name()}});
    sink.counter("lethe_cache_purged_bytes_total", "What the shrinker took from a cache",
                 cache->purged_bytes(), {{"cache", cache->name()}});
  }
  sink.counter("lethe_shrinker_purges_total", "Times the shrinker went round", x_purges);
}

}  // namespace lethe
