// ObjectCache<T>: a bounded cache of objects that are costly to make, with reservations.
//
//   auto reserved = cache.reserve(3);       // may make objects, may fail; nothing is half done yet
//   if (!reserved) return out_of_memory();
//   T a = reserved->take();                 // never fails, whatever the shrinker does meanwhile
//   ...                                     // what was not taken goes back by itself
//   cache.give_back(std::move(a));          // kept if there is room, else destroyed
//
// The shrinker takes objects that are free and not reserved, nothing else:
//
//   free >= reserved           always, so take() finds an object
//   count() == free - reserved what scan() may take
//
// Each operation is one critical section in which both numbers change together (reserve() makes
// missing objects outside of it, and then needs one more). So the invariant is a property of single
// steps, and no order of steps can break it; memory/object_cache_interleave_test.cc tries them all.
//
// Two variants:
// - ObjectCache<T>: any thread; a mutex, held for a few instructions, never while objects are made
// or
//   destroyed.
// - ObjectCache<T, NoLock>: one owner thread. count(), scan() and purged_bytes() are for any thread
//   all the same: scan() only notes how many objects are wanted and calls `wake`; the owner then
//   calls purge_as_asked().
//
// Memory order: objects and the two numbers are protected by the mutex, or belong to the owner.
// x_count and the other atomics are copies for readers on other threads, stored (by whoever holds
// the lock, or the owner) and loaded relaxed: nothing is reached through them. x_asked is a number
// of objects, moved by read-modify-writes, which lose none whatever the order.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/mutex.h"
#include "memory/shrinker.h"

namespace lethe {

// The lock of a cache that belongs to one thread.
class __attribute__((capability("thread"))) NoLock {
 public:
  void lock() __attribute__((acquire_capability())) {}
  void unlock() __attribute__((release_capability())) {}
};

template <typename T, typename Lock = Mutex>
class ObjectCache final : public ShrinkableCache {
  static_assert(std::is_nothrow_move_constructible_v<T>);

 public:
  struct Options {
    std::string name;
    size_t capacity = 0;        // free objects kept, and objects reserved at a time, at most
    uint64_t object_bytes = 0;  // what each costs the host
    // Makes one; nothing: the host has no memory. Called without the lock, on reserve()'s thread.
    std::function<std::optional<T>()> make;
    std::function<void()> wake = {};  // NoLock only: any thread; makes the owner purge_as_asked()
  };
  struct Counters {  // since the start; free == made + returned - taken - purged - dropped
    uint64_t made = 0, taken = 0, returned = 0, purged = 0;
    uint64_t dropped = 0;  // given back to a full cache
  };

  // Objects kept for one operation. Goes back to the cache by its destructor; must not outlive the
  // cache. One thread at a time.
  class Reservation {
   public:
    Reservation(Reservation&& other) noexcept
        : x_cache(other.x_cache), x_left(std::exchange(other.x_left, 0)) {}
    Reservation& operator=(Reservation&&) = delete;
    ~Reservation() {
      if (x_left > 0) x_cache->release(x_left);
    }
    [[nodiscard]] size_t left() const { return x_left; }
    // At most `left()` times (else a programmer error). Never fails.
    [[nodiscard]] T take() {
      LETHE_ASSERT(x_left > 0);
      --x_left;
      return x_cache->take_reserved();
    }

   private:
    friend class ObjectCache;
    Reservation(ObjectCache& cache, size_t objects) : x_cache(&cache), x_left(objects) {}
    ObjectCache* x_cache;
    size_t x_left;
  };

  explicit ObjectCache(Options options) : x_options(std::move(options)) {
    LETHE_ASSERT(x_options.object_bytes > 0);
    x_free.reserve(x_options.capacity);  // so that give_back() and release() never allocate
  }
  ~ObjectCache() override {
    Guard guard(x_lock);
    LETHE_ASSERT(x_reserved == 0);
  }
  ObjectCache(const ObjectCache&) = delete;
  ObjectCache& operator=(const ObjectCache&) = delete;

  // Keeps `objects` for the caller. Nothing if the host has no memory for the missing ones, or more
  // than `capacity` would be reserved in all. Makes at most `objects` of them.
  [[nodiscard]] std::optional<Reservation> reserve(size_t objects) {
    std::vector<T> made;
    for (;;) {
      {
        Guard guard(x_lock);
        if (objects > x_options.capacity - x_reserved) return std::nullopt;
        const size_t unreserved = x_free.size() - x_reserved;
        const size_t missing = objects > unreserved ? objects - unreserved : 0;
        // While others made theirs the shrinker may have taken what was here; once `made` holds
        // all that was asked for, nothing can be missing. What is too much is destroyed below,
        // without the lock. There is room: free + missing == reserved + objects <= capacity.
        if (missing <= made.size()) {
          for (size_t i = 0; i < missing; ++i) {
            x_free.push_back(std::move(made.back()));
            made.pop_back();
          }
          x_counters.made += missing;
          x_reserved += objects;
          publish();
          return Reservation(*this, objects);
        }
      }
      std::optional<T> object = x_options.make();
      if (!object) return std::nullopt;
      made.push_back(std::move(*object));
    }
  }

  // Takes one object: reserve(1) and take().
  [[nodiscard]] std::optional<T> take() {
    auto reserved = reserve(1);
    if (!reserved) return std::nullopt;
    return reserved->take();
  }

  // Any object of this kind. Kept if there is room.
  void give_back(T object) {
    Guard guard(x_lock);
    ++x_counters.returned;
    if (x_free.size() == x_options.capacity) {
      ++x_counters.dropped;
      return;  // the parameter is destroyed by the caller, after the guard
    }
    x_free.push_back(std::move(object));
    publish();
  }

  // ShrinkableCache, any thread.
  [[nodiscard]] std::string_view name() const override { return x_options.name; }
  [[nodiscard]] uint64_t object_bytes() const override { return x_options.object_bytes; }
  [[nodiscard]] uint64_t count() const override { return x_count.load(std::memory_order_relaxed); }
  [[nodiscard]] uint64_t purged_bytes() const override {
    return x_purged.load(std::memory_order_relaxed) * x_options.object_bytes;
  }
  [[nodiscard]] Scanned scan(uint64_t objects_max) override {
    if constexpr (std::is_same_v<Lock, NoLock>) {
      // What was asked for before and is still to come is not promised twice.
      const uint64_t there = count();
      const uint64_t pending = std::min(there, x_asked.load(std::memory_order_relaxed));
      const uint64_t asked = std::min(objects_max, there - pending);
      if (asked == 0) return {};
      x_asked.fetch_add(asked, std::memory_order_relaxed);
      if (x_options.wake) x_options.wake();
      return {.freed = 0, .asked = asked};
    } else {
      return {.freed = purge(objects_max), .asked = 0};
    }
  }
  // The owner gives up what scan() asked for since the last time; how many objects that was.
  uint64_t purge_as_asked()
    requires std::is_same_v<Lock, NoLock>
  {
    return purge(x_asked.exchange(0, std::memory_order_relaxed));
  }

  // For tests and metrics: what is there now.
  struct State {
    size_t free = 0, reserved = 0;
    Counters counters;
  };
  [[nodiscard]] State state() const {
    Guard guard(x_lock);
    return {x_free.size(), x_reserved, x_counters};
  }

 private:
  class __attribute__((scoped_lockable)) Guard {
   public:
    explicit Guard(Lock& lock) __attribute__((acquire_capability(lock))) : x_held(lock) {
      x_held.lock();
    }
    ~Guard() __attribute__((release_capability())) { x_held.unlock(); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    Lock& x_held;
  };

  T take_reserved() {
    Guard guard(x_lock);
    LETHE_ASSERT(x_reserved > 0 && x_free.size() >= x_reserved);
    T object = std::move(x_free.back());
    x_free.pop_back();
    --x_reserved;
    ++x_counters.taken;
    publish();
    return object;
  }

  void release(size_t objects) {
    Guard guard(x_lock);
    LETHE_ASSERT(x_reserved >= objects);
    x_reserved -= objects;
    publish();
  }

  uint64_t purge(uint64_t objects_max) {
    std::vector<T> doomed;  // destroyed without the lock: that may be a system call
    doomed.reserve(static_cast<size_t>(std::min<uint64_t>(objects_max, count())));
    {
      Guard guard(x_lock);
      const size_t objects =
          static_cast<size_t>(std::min<uint64_t>(objects_max, x_free.size() - x_reserved));
      for (size_t i = 0; i < objects; ++i) {
        doomed.push_back(std::move(x_free.back()));
        x_free.pop_back();
      }
      x_counters.purged += objects;
      publish();
    }
    x_purged.fetch_add(doomed.size(), std::memory_order_relaxed);
    return doomed.size();
  }

  void publish() LETHE_REQUIRES(x_lock) {
    LETHE_ASSERT(x_free.size() >= x_reserved);
    x_count.store(x_free.size() - x_reserved, std::memory_order_relaxed);
  }

  const Options x_options;
  mutable Lock x_lock;
  std::vector<T> x_free LETHE_GUARDED_BY(x_lock);
  size_t x_reserved LETHE_GUARDED_BY(x_lock) = 0;
  Counters x_counters LETHE_GUARDED_BY(x_lock);
  std::atomic<uint64_t> x_count{0};   // free - reserved
  std::atomic<uint64_t> x_purged{0};  // objects
  std::atomic<uint64_t> x_asked{0};   // NoLock: objects that scan() wants the owner to give up
};

}  // namespace lethe
