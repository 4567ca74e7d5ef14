// A histogram of durations: one bucket a power of two of nanoseconds, without locks.
//
// Threading: add() and snapshot() from any thread. A snapshot taken while others add is a true
// count of some of the additions, not of one moment.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>

namespace lethe {

class Histogram {
 public:
  // Bucket i counts durations below 2^i ns that no smaller bucket counts; the last one all longer.
  static constexpr size_t kBuckets = 40;  // 2^38 ns: 275 s

  struct Snapshot {
    std::array<uint64_t, kBuckets> buckets{};
    uint64_t count = 0;
    uint64_t sum_ns = 0;
    uint64_t max_ns = 0;
    // The upper end, in ns, of the bucket that holds the given share (0 to 1) of the durations, but
    // no more than the longest; 0 if there are none.
    [[nodiscard]] uint64_t quantile_ns(double share) const {
      const auto wanted = static_cast<uint64_t>(share * static_cast<double>(count));
      uint64_t seen = 0;
      for (size_t i = 0; i < kBuckets; ++i) {
        seen += buckets[i];
        if (seen > wanted || (seen == count && count > 0))
          return i + 1 == kBuckets ? max_ns : std::min(max_ns, uint64_t{1} << i);
      }
      return 0;
    }
  };

  void add(std::chrono::nanoseconds duration) {
    const uint64_t ns = duration.count() < 0 ? 0 : static_cast<uint64_t>(duration.count());
    const size_t bucket = std::min<size_t>(static_cast<size_t>(std::bit_width(ns)), kBuckets - 1);
    x_buckets[bucket].fetch_add(1, std::memory_order_relaxed);
    x_sum_ns.fetch_add(ns, std::memory_order_relaxed);
    uint64_t longest = x_max_ns.load(std::memory_order_relaxed);
    while (ns > longest &&
           !x_max_ns.compare_exchange_weak(longest, ns, std::memory_order_relaxed)) {
    }
  }

  [[nodiscard]] Snapshot snapshot() const {
    Snapshot result;
    for (size_t i = 0; i < kBuckets; ++i) {
      result.buckets[i] = x_buckets[i].load(std::memory_order_relaxed);
      result.count += result.buckets[i];
    }
    result.sum_ns = x_sum_ns.load(std::memory_order_relaxed);
    result.max_ns = x_max_ns.load(std::memory_order_relaxed);
    return result;
  }

 private:
  std::array<std::atomic<uint64_t>, kBuckets> x_buckets{};
  std::atomic<uint64_t> x_sum_ns{0};
  std::atomic<uint64_t> x_max_ns{0};
};

}  // namespace lethe
