// RcuCell<T>: a value that many threads read without locks and few threads replace as a whole.
//
// Readers take a ReadGuard (wait-free, liburcu's "bulletproof" flavour: any thread, no
// registration) and see one version for as long as they hold it. Writers copy the current version,
// edit the copy, publish it and retire the old one. Retired versions are freed after a grace
// period, by one path only: the writer that finds `backlog_max` of them waits until readers have
// left, and frees them all (self-limiting). That is the lesson of KVM's lockless shadow walk, v2
// 12/15 (Guangrong, Tosatti, 2013): unbounded call_rcu trades a slow writer for an out-of-memory
// kill, and a second way of freeing, picked by a state flag, is wrong. So up to backlog_max old
// versions stay in memory until the next writer, reclaim() or the destructor; no thread wakes up
// for them.
//
// A thread must not call update() or reclaim() while it holds a ReadGuard of any cell: it would
// wait for itself.
#pragma once

#include <urcu/urcu-bp.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/mutex.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#include <sanitizer/tsan_interface.h>
#define LETHE_TSAN 1
#endif
#endif

namespace lethe {

template <typename T>
class RcuCell {
 public:
  explicit RcuCell(T first, size_t backlog_max = 16)
      : x_current(new T(std::move(first))), x_backlog_max(backlog_max) {
    LETHE_ASSERT(backlog_max > 0);
    x_retired.reserve(backlog_max);  // retiring never allocates: it can't fail
  }
  // No reader may hold a guard, no writer may be in update().
  ~RcuCell() { delete x_current.load(std::memory_order_relaxed); }
  RcuCell(const RcuCell&) = delete;
  RcuCell& operator=(const RcuCell&) = delete;

  class ReadGuard {
   public:
    explicit ReadGuard(const RcuCell& cell) : x_cell(cell) {
      urcu_bp_read_lock();
      // Acquire pairs with the release in update(): the version's content is visible.
      x_value = cell.x_current.load(std::memory_order_acquire);
    }
    ~ReadGuard() {
      x_cell.mark_reader_left();
      urcu_bp_read_unlock();
    }
    ReadGuard(const ReadGuard&) = delete;
    ReadGuard& operator=(const ReadGuard&) = delete;
    const T& operator*() const { return *x_value; }
    const T* operator->() const { return x_value; }

   private:
    const RcuCell& x_cell;
    const T* x_value;
  };

  [[nodiscard]] ReadGuard read() const { return ReadGuard(*this); }

  // Copies the current version, calls edit(T&) on the copy, publishes it, retires the old one.
  // Waits for readers first if the retire backlog is at its cap. Writers take turns.
  template <typename Edit>
  void update(Edit&& edit) LETHE_EXCLUDES(x_write_mutex) {
    MutexLock writing(x_write_mutex);
    if (x_retired.size() >= x_backlog_max) free_retired();
    T* const old = x_current.load(std::memory_order_relaxed);
    auto next = std::make_unique<T>(*old);
    std::forward<Edit>(edit)(*next);
    // Release pairs with the acquire in ReadGuard.
    x_current.store(next.release(), std::memory_order_release);
    x_retired.emplace_back(old);
    x_backlog.store(x_retired.size(), std::memory_order_relaxed);
  }

  // Waits until every guard that existed at the call is gone, and frees all retired versions:
  // afterwards nobody uses an older version than the current one.
  void reclaim() LETHE_EXCLUDES(x_write_mutex) {
    MutexLock writing(x_write_mutex);
    free_retired();
  }

  // Versions retired and not yet freed: 0 to backlog_max. Any thread.
  [[nodiscard]] size_t backlog() const { return x_backlog.load(std::memory_order_relaxed); }

 private:
  void free_retired() LETHE_REQUIRES(x_write_mutex) {
    urcu_bp_synchronize_rcu();
#ifdef LETHE_TSAN
    __tsan_acquire(&x_readers_left);
#endif
    x_retired.clear();
    x_backlog.store(0, std::memory_order_relaxed);
  }

  // liburcu is not instrumented: tells TSan that a guard's reads happen before free_retired() goes
  // on.
  void mark_reader_left() const {
#ifdef LETHE_TSAN
    __tsan_release(&x_readers_left);
#endif
  }

  std::atomic<T*> x_current;
#ifdef LETHE_TSAN
  mutable char x_readers_left = 0;  // only its address counts
#endif
  const size_t x_backlog_max;
  Mutex x_write_mutex;
  std::vector<std::unique_ptr<T>> x_retired LETHE_GUARDED_BY(x_write_mutex);
  std::atomic<size_t> x_backlog{0};
};

}  // namespace lethe
