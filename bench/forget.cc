// The longest time from a guest's report of free memory to the moment when nobody can read it any
// more: on an idle host, and with twice as many busy threads as processors.
//
// Through the real balloon device: the clock runs from just before the driver publishes a burst of
// 1 to 64 chunks, in chains of up to 32 as Linux's, until the whole burst is forgotten. Policy
// discard: the last chain is used. Policy pool: that, and nothing in the pool is dirty or being
// scrubbed any more. The worse of the two policies counts.
#include <array>
#include <atomic>

#include "bench/pool_bench.h"
#include "bench/report.h"
#include "devices/virtio/balloon/balloon.h"
#include "devices/virtio/fake_transport.h"

namespace lethe {
namespace {

constexpr size_t kChunks = 64;
constexpr uint64_t kBytes = kChunks * kChunkBytes;
constexpr uint64_t kHeapBytes = 32 * kMiB;  // behind them: the driver's rings
constexpr size_t kChainRanges = 32;
constexpr uint16_t kReportQueue = 3;  // inflate, deflate, hints, reports

class Guest {
 public:
  explicit Guest(ReturnPolicy policy)
      : x_guest(kBytes + kHeapBytes, options(policy)),
        x_pipeline(*x_guest.memory, {.taker = x_guest.pool.get()}),
        x_balloon(BalloonDevice::create(*x_guest.memory, x_pipeline, {.statistics = false})),
        x_transport(*x_guest.memory, *x_balloon, GuestAddr{kBytes}) {
    x_pipeline.set_policy(policy);
    x_transport.start(~(uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC), BalloonDevice::kQueueSize);
  }

  // The longest time, in ms.
  double measure(int bursts) {
    double longest = 0;
    for (int burst = 0; burst < bursts; ++burst)
      longest = std::max(longest, report(burst % 4 == 3 ? kChunks : size_t{1} << burst % 6));
    return longest;
  }
  [[nodiscard]] ScrubPool::Stats stats() const { return x_guest.pool->stats(); }
  [[nodiscard]] uint64_t reported() const { return x_reported; }

 private:
  static ScrubPoolOptions options(ReturnPolicy policy) {
    ScrubPoolOptions result;
    result.bytes_max = policy == ReturnPolicy::kPool ? kBytes : 0;
    return result;
  }

  double report(size_t count) {
    for (size_t i = 0; i < count; ++i) std::fill_n(x_guest.chunk(i), kChunkBytes, uint8_t{1});
    FakeDriver& driver = x_transport.driver(kReportQueue);
    for (size_t at = 0; at < count; at += kChainRanges) {
      std::array<FakeBuffer, kChainRanges> ranges;
      const size_t length = std::min(kChainRanges, count - at);
      for (size_t i = 0; i < length; ++i)
        ranges[i] = {GuestAddr{(at + i) * kChunkBytes}, static_cast<uint32_t>(kChunkBytes), true};
      if (!driver.prepare(std::span(ranges).first(length), FakeDriver::Table::kDirect))
        give_up("a chain does not fit");
    }
    const auto begin = BenchClock::now();
    driver.publish();
    x_transport.kick_if_wanted(kReportQueue);
    while (driver.outstanding() > 0)
      if (!driver.wait_used(x_transport.interrupt(kReportQueue),
                            deadline_in(FakeTransport::kPatience)))
        give_up("the device does not answer");
    x_guest.settle();
    const double took = seconds_since(begin) * 1e3;
    if (resident_bytes(x_guest.host, count * kChunkBytes) != 0)
      give_up("memory was reported and is still there");
    x_reported += count * kChunkBytes;
    return took;
  }

  PooledGuest x_guest;
  ReturnPipeline x_pipeline;
  std::unique_ptr<BalloonDevice> x_balloon;
  FakeTransport x_transport;
  uint64_t x_reported = 0;
};

// The worse of both policies.
double measure(Guest& pool, Guest& discard, int pool_bursts, int discard_bursts) {
  const double pool_ms = pool.measure(pool_bursts);
  const double discard_ms = discard.measure(discard_bursts);
  const auto stats = pool.stats();
  std::fprintf(stderr,
               "longest: pool %.1f ms, discard %.1f ms; since the start the pool scrubbed %.0f MiB "
               "and discarded %.0f MiB in time\n",
               pool_ms, discard_ms, static_cast<double>(stats.scrubbed_bytes) / kMiB,
               static_cast<double>(stats.expired_bytes) / kMiB);
  return std::max(pool_ms, discard_ms);
}

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  Guest pool(ReturnPolicy::kPool);
  Guest discard(ReturnPolicy::kDiscard);
  report.add("forget.idle_ms_max", measure(pool, discard, 300, 300), "ms");
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (unsigned i = 0; i < 2 * std::thread::hardware_concurrency(); ++i)
    others.emplace_back([&] {
      while (!stop.load(std::memory_order_relaxed)) {
      }
    });
  report.add("forget.busy_ms_max", measure(pool, discard, 30, 100), "ms");
  stop = true;
  for (std::thread& other : others) other.join();
  if (pool.stats().moved_bytes < pool.reported() / 10 * 9)
    give_up("too little went through the pool");
  return report.finish();
}
