// A thread frees 512 MiB and uses them again, over and over: what does it cost it that they were
// returned to the host meanwhile?
//
// A guest of 2 GiB with the default pool for that, 512 MiB. What is freed is reported at once, a
// chunk at a time (the pool's own entry; a balloon device would add its queue). Then the thread
// waits for 300 ms (stock Linux reports only 2 s after the free, so its pool has far longer to
// settle), and writes all of the memory as Linux's clear_page does. Timed is the writing: the wait
// is the same for all and would only hide the difference. Off, auto (on an idle host: pool) and
// discard take turns.
#include "bench/pool_bench.h"
#include "bench/report.h"

namespace lethe {
namespace {

constexpr uint64_t kGuest = 2 * kGiB;
constexpr uint64_t kFreed = 512 * kMiB;
constexpr size_t kChunks = kFreed / kChunkBytes;
constexpr int kRounds = 12;
constexpr int kWarmUp = 2;
constexpr auto kWait = std::chrono::milliseconds(300);

double refill(const PooledGuest& guest) {
  std::this_thread::sleep_for(kWait);
  const auto begin = BenchClock::now();
  clear_pages(guest.chunk(0), kFreed);
  return seconds_since(begin) * 1e3;
}

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  ScrubPoolOptions options;
  options.bytes_max = kFreed;
  const PooledGuest off(kGuest, {});
  PooledGuest pool(kGuest, options);
  const PooledGuest discard(kGuest, {});
  for (const PooledGuest* guest : std::initializer_list<const PooledGuest*>{&off, &pool, &discard})
    clear_pages(guest->chunk(0), kFreed);

  std::vector<double> off_ms, pool_ms, discard_ms;
  for (int round = -kWarmUp; round < kRounds; ++round) {
    const double without = refill(off);
    for (size_t i = 0; i < kChunks; ++i) pool.give_back(i);
    const double with_pool = refill(pool);
    for (size_t i = 0; i < kChunks; ++i)
      (void)::madvise(discard.chunk(i), kChunkBytes, MADV_DONTNEED);
    const double with_discard = refill(discard);
    if (round < 0) continue;
    off_ms.push_back(without);
    pool_ms.push_back(with_pool);
    discard_ms.push_back(with_discard);
  }
  const auto stats = pool.pool->stats();
  report.add("churn.off_ms", quantile(off_ms, 0.5), "ms");
  report.add("churn.auto_ms", quantile(pool_ms, 0.5), "ms");
  report.add("churn.discard_ms", quantile(discard_ms, 0.5), "ms");
  report.add("churn.chunks_refused", static_cast<double>(pool.refused), "count");
  report.add("churn.faults_per_round",
             static_cast<double>(stats.refault.count) / (kRounds + kWarmUp), "count");
  report.add("churn.discard_vs_off", quantile(discard_ms, 0.5) / quantile(off_ms, 0.5), "ratio");
  report.add("churn.auto_vs_off", quantile(pool_ms, 0.5) / quantile(off_ms, 0.5), "ratio");
  return report.finish();
}
