// RcuCell<T>: a value that many threads read without locks and few threads replace as a whole.
//
// Readers take a ReadGuard (wait-free, liburcu's "bulletproof" flavour: any thread, no
// registration) and see one version for as long as they hold it. Writers copy the current version,
// edit the copy, publish it and retire the old one. There is one path by which old versions are
// freed, call_rcu, and at most `backlog_max` of them wait for it: at the cap update() blocks until
// readers leave (self-limiting). That is the lesson of KVM's lockless shadow walk, v2 12/15
// (Guangrong, Tosatti, 2013): unbounded call_rcu trades a slow writer for an out-of-memory kill,
// and a second way of freeing, picked by a state flag, is wrong.
//
// A thread must not call update() while it holds a ReadGuard of any cell: at the cap it would wait
// for itself.
#pragma once

#include <urcu/urcu-bp.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

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
  struct Node;

 public:
  explicit RcuCell(T first, size_t backlog_max = 16)
      : x_current(new Node(std::move(first), *this)), x_backlog_max(backlog_max) {
    LETHE_ASSERT(backlog_max > 0);
  }
  // No reader may hold a guard, no writer may be in update(). Waits for retired versions.
  ~RcuCell() {
    {
      MutexLock lock(x_backlog_mutex);
      while (x_backlog > 0) x_backlog_changed.wait(x_backlog_mutex);
    }
    delete x_current.load(std::memory_order_relaxed);
  }
  RcuCell(const RcuCell&) = delete;
  RcuCell& operator=(const RcuCell&) = delete;

  class ReadGuard {
   public:
    explicit ReadGuard(const RcuCell& cell) {
      urcu_bp_read_lock();
      // Acquire pairs with the release in update(): the version's content is visible.
      x_node = cell.x_current.load(std::memory_order_acquire);
    }
    ~ReadGuard() {
#ifdef LETHE_TSAN
      // liburcu is not instrumented: tell TSan that reads before the unlock happen before a
      // wait_for_readers() that waits for this guard returns, and before the free (last, since it
      // looks into the node itself).
      __tsan_release(&x_node->cell.x_readers_left);
      __tsan_release(const_cast<Node*>(x_node));
#endif
      urcu_bp_read_unlock();
    }
    ReadGuard(const ReadGuard&) = delete;
    ReadGuard& operator=(const ReadGuard&) = delete;
    const T& operator*() const { return x_node->value; }
    const T* operator->() const { return &x_node->value; }

   private:
    const Node* x_node;
  };

  [[nodiscard]] ReadGuard read() const { return ReadGuard(*this); }

  // Copies the current version, calls edit(T&) on the copy, publishes it, retires the old one.
  // Blocks while the retire backlog is at its cap. Writers take turns.
  template <typename Edit>
  void update(Edit&& edit) {
    MutexLock writing(x_write_mutex);
    {
      MutexLock lock(x_backlog_mutex);
      while (x_backlog >= x_backlog_max) x_backlog_changed.wait(x_backlog_mutex);
      ++x_backlog;
    }
    Node* const old = x_current.load(std::memory_order_relaxed);
    auto next = std::make_unique<Node>(old->value, *this);
    std::forward<Edit>(edit)(next->value);
    // Release pairs with the acquire in ReadGuard.
    x_current.store(next.release(), std::memory_order_release);
#ifdef LETHE_TSAN
    // The node reaches the freeing thread through liburcu's queue, which TSan doesn't see.
    __tsan_release(old);
#endif
    urcu_bp_call_rcu(&old->head, &RcuCell::free_node);
  }

  // Returns once every guard that existed at the call is gone: nobody uses an older version than
  // the one that was current then. The calling thread must not hold a guard of any cell.
  void wait_for_readers() const {
    urcu_bp_synchronize_rcu();
#ifdef LETHE_TSAN
    __tsan_acquire(&x_readers_left);
#endif
  }

  // Versions retired and not yet freed: 0 to backlog_max.
  [[nodiscard]] size_t backlog() const {
    MutexLock lock(x_backlog_mutex);
    return x_backlog;
  }

 private:
  struct Node {
    Node(T v, RcuCell& c) : value(std::move(v)), cell(c) {}
    rcu_head head{};
    T value;
    RcuCell& cell;
  };

  static void free_node(rcu_head* head) {
    // SAFETY: `head` is the first member of the Node that update() retired.
    Node* const node = reinterpret_cast<Node*>(head);
#ifdef LETHE_TSAN
    __tsan_acquire(node);
#endif
    RcuCell& cell = node->cell;
    delete node;
    MutexLock lock(cell.x_backlog_mutex);
    --cell.x_backlog;
    cell.x_backlog_changed.notify_all();  // under the lock: a destructor that waits frees both
  }

  std::atomic<Node*> x_current;
#ifdef LETHE_TSAN
  mutable char x_readers_left = 0;  // only its address counts
#endif
  const size_t x_backlog_max;
  Mutex x_write_mutex;
  mutable Mutex x_backlog_mutex;
  CondVar x_backlog_changed;
  size_t x_backlog LETHE_GUARDED_BY(x_backlog_mutex) = 0;
};

}  // namespace lethe
