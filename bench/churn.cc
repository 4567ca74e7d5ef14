// A thread frees 512 MiB and uses them again, over and over: what does it cost it that they were
// returned to the host meanwhile?
//
// A guest of 2 GiB with the default pool for that, 512 MiB. What it frees it reports through the
// real balloon device as Linux does, 32 ranges of 2 MiB a chain, one chain at a time. Then it waits
// for 300 ms (stock Linux reports only 2 s after the free, so its pool has far longer to settle),
// and writes all of the memory as Linux's clear_page does. Timed is the writing: report and wait
// are not the thread's own, and would only hide the difference. Off, auto (on an idle host: the
// policy pool) and discard take turns.
#include <array>

#include "bench/pool_bench.h"
#include "bench/report.h"
#include "devices/virtio/balloon/balloon.h"
#include "devices/virtio/fake_transport.h"

namespace lethe {
namespace {

constexpr uint64_t kGuest = 2 * kGiB;
constexpr uint64_t kFreed = 512 * kMiB;
constexpr uint64_t kHeap = kGiB;  // where the driver's rings are
constexpr size_t kChainRanges = 32;
constexpr uint16_t kReportQueue = 3;  // inflate, deflate, hints, reports
constexpr int kRounds = 12;
constexpr int kWarmUp = 2;
constexpr auto kWait = std::chrono::milliseconds(300);

class Guest {
 public:
  Guest(ReturnPolicy policy, uint64_t pool_bytes)
      : x_guest(kGuest, options(pool_bytes)),
        x_pipeline(*x_guest.memory, {.taker = x_guest.pool.get()}),
        x_balloon(BalloonDevice::create(*x_guest.memory, x_pipeline, {.statistics = false})),
        x_transport(*x_guest.memory, *x_balloon, GuestAddr{kHeap}) {
    x_pipeline.set_policy(policy);
    x_transport.start(~(uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC), BalloonDevice::kQueueSize);
    clear_pages(x_guest.host, kFreed);
  }

  void report() {
    for (uint64_t at = 0; at < kFreed; at += kChainRanges * kChunkBytes) {
      std::array<FakeBuffer, kChainRanges> ranges;
      for (size_t i = 0; i < kChainRanges; ++i)
        ranges[i] = {GuestAddr{at + i * kChunkBytes}, static_cast<uint32_t>(kChunkBytes), true};
      if (!x_transport.request(kReportQueue, ranges)) give_up("the device does not answer");
    }
  }
  // In ms.
  double refill() {
    std::this_thread::sleep_for(kWait);
    const auto begin = BenchClock::now();
    clear_pages(x_guest.host, kFreed);
    return seconds_since(begin) * 1e3;
  }
  [[nodiscard]] ScrubPool::Stats stats() const { return x_guest.pool->stats(); }

 private:
  static ScrubPoolOptions options(uint64_t pool_bytes) {
    ScrubPoolOptions result;
    result.bytes_max = pool_bytes;
    return result;
  }
  PooledGuest x_guest;
  ReturnPipeline x_pipeline;
  std::unique_ptr<BalloonDevice> x_balloon;
  FakeTransport x_transport;
};

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  Guest off(ReturnPolicy::kDiscard, 0);
  Guest pool(ReturnPolicy::kPool, kFreed);
  Guest discard(ReturnPolicy::kDiscard, 0);
  std::vector<double> off_ms, pool_ms, discard_ms;
  for (int round = -kWarmUp; round < kRounds; ++round) {
    const double without = off.refill();
    pool.report();
    const double with_pool = pool.refill();
    discard.report();
    const double with_discard = discard.refill();
    if (round < 0) continue;
    off_ms.push_back(without);
    pool_ms.push_back(with_pool);
    discard_ms.push_back(with_discard);
  }
  const auto stats = pool.stats();
  constexpr int kAll = kRounds + kWarmUp;
  if (stats.moved_bytes < kAll * kFreed / 10 * 9) give_up("too little went through the pool");
  report.add("churn.off_ms", quantile(off_ms, 0.5), "ms");
  report.add("churn.auto_ms", quantile(pool_ms, 0.5), "ms");
  report.add("churn.discard_ms", quantile(discard_ms, 0.5), "ms");
  report.add("churn.chunks_refused", static_cast<double>(stats.refused), "count");
  report.add("churn.faults_per_round", static_cast<double>(stats.refault.count) / kAll, "count");
  report.add("churn.discard_vs_off", quantile(discard_ms, 0.5) / quantile(off_ms, 0.5), "ratio");
  report.add("churn.auto_vs_off", quantile(pool_ms, 0.5) / quantile(off_ms, 0.5), "ratio");
  return report.finish();
}
