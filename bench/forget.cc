// The longest time from a report to the moment when nobody can read the reported memory any more:
// scrubbed, or discarded. On an idle host, and with twice as many busy threads as processors.
//
// Bursts of 1 to 64 chunks, each after the last one is forgotten. Two clocks, and the longer one
// counts: the pool's histogram, and one from outside, that runs from before a burst until the pool
// has nothing dirty any more (and so counts the burst's own time, too).
#include <atomic>

#include "bench/pool_bench.h"
#include "bench/report.h"

namespace lethe {
namespace {

constexpr size_t kChunks = 64;

// The longest time, in ms.
double measure(int bursts) {
  ScrubPoolOptions options;
  options.bytes_max = kChunks * kChunkBytes;
  PooledGuest guest(kChunks * kChunkBytes, options);
  double longest = 0;
  for (int burst = 0; burst < bursts; ++burst) {
    const size_t count = burst % 4 == 3 ? kChunks : size_t{1} << burst % 6;
    for (size_t i = 0; i < count; ++i) std::fill_n(guest.chunk(i), kChunkBytes, uint8_t{1});
    const auto begin = BenchClock::now();
    for (size_t i = 0; i < count; ++i) guest.give_back(i);
    guest.settle();
    longest = std::max(longest, seconds_since(begin) * 1e3);
  }
  const auto stats = guest.pool->stats();
  std::fprintf(stderr, "%d bursts: %.0f MiB scrubbed, %.0f MiB discarded in time, %zu refused\n",
               bursts, static_cast<double>(stats.scrubbed_bytes) / kMiB,
               static_cast<double>(stats.expired_bytes) / kMiB, guest.refused);
  return std::max(longest, static_cast<double>(stats.forget.max_ns) / 1e6);
}

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  report.add("forget.idle_ms_max", measure(300), "ms");
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (unsigned i = 0; i < 2 * std::thread::hardware_concurrency(); ++i)
    others.emplace_back([&] {
      while (!stop.load(std::memory_order_relaxed)) {
      }
    });
  report.add("forget.busy_ms_max", measure(30), "ms");
  stop = true;
  for (std::thread& other : others) other.join();
  return report.finish();
}
