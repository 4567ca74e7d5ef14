// Mutex, lock and condition variable with clang's thread-safety annotations (an error when broken).
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#define LETHE_GUARDED_BY(mutex) __attribute__((guarded_by(mutex)))
#define LETHE_REQUIRES(...) __attribute__((requires_capability(__VA_ARGS__)))
#define LETHE_EXCLUDES(...) __attribute__((locks_excluded(__VA_ARGS__)))
#define LETHE_NO_THREAD_SAFETY_ANALYSIS __attribute__((no_thread_safety_analysis))

namespace lethe {

class __attribute__((capability("mutex"))) Mutex {
 public:
  void lock() __attribute__((acquire_capability())) { x_mutex.lock(); }
  void unlock() __attribute__((release_capability())) { x_mutex.unlock(); }
  bool try_lock() __attribute__((try_acquire_capability(true))) { return x_mutex.try_lock(); }

 private:
  friend class CondVar;
  std::mutex x_mutex;
};

class __attribute__((scoped_lockable)) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) __attribute__((acquire_capability(mutex))) : x_mutex(mutex) {
    x_mutex.lock();
  }
  ~MutexLock() __attribute__((release_capability())) { x_mutex.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& x_mutex;
};

class CondVar {
 public:
  // Waits until notified, or spuriously; the caller loops over its condition, holding `mutex`.
  void wait(Mutex& mutex) LETHE_REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.x_mutex, std::adopt_lock);
    x_condition.wait(lock);
    lock.release();
  }
  // The same with a deadline: false once it has passed.
  bool wait_until(Mutex& mutex, std::chrono::steady_clock::time_point deadline)
      LETHE_REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.x_mutex, std::adopt_lock);
    const bool in_time = x_condition.wait_until(lock, deadline) == std::cv_status::no_timeout;
    lock.release();
    return in_time;
  }
  void notify_one() { x_condition.notify_one(); }
  void notify_all() { x_condition.notify_all(); }

 private:
  std::condition_variable x_condition;
};

}  // namespace lethe
