// The first touch of 2 MiB that a guest gave back: from the scrub pool, against the kernel's own
// fault of a huge page after MADV_DONTNEED, and against 4 KiB faults over the same 2 MiB.
//
// A round gives back 256 MiB; then it touches one chunk after the other, and writes each as Linux
// clears its pages before it goes on: a guest that allocates. The order is one without neighbours,
// so every chunk is a fault of its own, and no chunk is in a cache because it was just freed. The
// three take turns, round by round. `idle` is the same for a guest that slept for 2 ms before each
// touch: then the fault thread's processor sleeps, too, and has to be woken (in a virtual machine
// as these figures come from, by an interrupt through the hypervisor).
#include <sys/mman.h>

#include "bench/pool_bench.h"
#include "bench/report.h"

namespace lethe {
namespace {

constexpr size_t kChunks = 128;
constexpr size_t kStride =
    37;  // coprime to kChunks; no neighbour within the pool's memory for them
constexpr int kRounds = 8;
constexpr int kIdleTouches = 64;
constexpr uint64_t kPage = 4096;
constexpr auto kIdle = std::chrono::milliseconds(2);

// One byte written: the time until it is there, in us.
double touch(volatile uint8_t* chunk) {
  const auto begin = BenchClock::now();
  chunk[0] = 1;
  return seconds_since(begin) * 1e6;
}

// One byte of every page.
double touch_all(volatile uint8_t* chunk) {
  const auto begin = BenchClock::now();
  for (uint64_t at = 0; at < kChunkBytes; at += kPage) chunk[at] = 1;
  return seconds_since(begin) * 1e6;
}

struct Samples {
  std::vector<double> first;
  std::vector<double> all;  // the first touch and one of every page
  std::vector<double> idle;
};

void touch_round(const PooledGuest& guest, Samples& samples) {
  for (size_t n = 0; n < kChunks; ++n) {
    uint8_t* const chunk = guest.chunk(n * kStride % kChunks);
    const double first = touch(chunk);
    samples.first.push_back(first);
    samples.all.push_back(first + touch_all(chunk));
    clear_pages(chunk, kChunkBytes);
  }
}

void touch_idle(const PooledGuest& guest, Samples& samples) {
  for (size_t n = 0; n < kIdleTouches; ++n) {
    std::this_thread::sleep_for(kIdle);
    samples.idle.push_back(touch(guest.chunk(n * kStride % kChunks)));
  }
}

void discard_all(const PooledGuest& guest) {
  for (size_t i = 0; i < kChunks; ++i)
    if (::madvise(guest.chunk(i), kChunkBytes, MADV_DONTNEED) != 0)
      give_up("MADV_DONTNEED is refused");
}

struct Guests {
  PooledGuest pool;
  PooledGuest huge;
  PooledGuest small;
};

void give_back_all(Guests& guests) {
  for (size_t i = 0; i < kChunks; ++i) guests.pool.give_back(i);
  discard_all(guests.huge);
  discard_all(guests.small);
  guests.pool.settle();
}

void measure(Guests& guests, Samples& pool, Samples& huge, Samples& small) {
  if (::madvise(guests.small.host, kChunks * kChunkBytes, MADV_NOHUGEPAGE) != 0)
    give_up("MADV_NOHUGEPAGE is refused");
  for (const PooledGuest* const guest : {&guests.pool, &guests.huge, &guests.small})
    std::fill_n(guest->host, kChunks * kChunkBytes, uint8_t{1});
  for (int round = 0; round < kRounds; ++round) {
    give_back_all(guests);
    touch_round(guests.pool, pool);
    touch_round(guests.huge, huge);
    touch_round(guests.small, small);
  }
  give_back_all(guests);
  touch_idle(guests.pool, pool);
  touch_idle(guests.huge, huge);
  const auto stats = guests.pool.pool->stats();
  if (stats.neighbour_bytes > 0) give_up("a chunk came with another one's fault");
  if (stats.refaulted_bytes < kRounds * kChunks * kChunkBytes / 10 * 9)
    give_up("too many touches were not answered with a chunk of the pool");
}

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  ScrubPoolOptions options;
  constexpr uint64_t kSize = kChunks * kChunkBytes;
  options.bytes_max = kSize;
  Guests guests{{kSize, options}, {kSize, {}}, {kSize, {}}};
  Samples pool, huge, small;
  measure(guests, pool, huge, small);
  const auto stats = guests.pool.pool->stats();
  const double pool_50 = quantile(pool.first, 0.5);
  const double pool_99 = quantile(pool.first, 0.99);
  const double kernel_50 = quantile(huge.first, 0.5);
  const double kernel_99 = quantile(huge.first, 0.99);
  report.add("refault.pool_p50_us", pool_50, "us");
  report.add("refault.pool_p99_us", pool_99, "us");
  report.add("refault.kernel_p50_us", kernel_50, "us");
  report.add("refault.kernel_p99_us", kernel_99, "us");
  report.add("refault.kernel_4k_p50_us", quantile(small.all, 0.5), "us");
  report.add("refault.pool_idle_p50_us", quantile(pool.idle, 0.5), "us");
  report.add("refault.kernel_idle_p50_us", quantile(huge.idle, 0.5), "us");
  report.add("refault.answer_mean_us",
             static_cast<double>(stats.refault.sum_ns) / 1e3 /
                 static_cast<double>(std::max<uint64_t>(1, stats.refault.count)),
             "us");
  report.add("refault.chunks_refused", static_cast<double>(guests.pool.refused), "count");
  report.add("refault.p50_vs_kernel_4k", quantile(pool.all, 0.5) / quantile(small.all, 0.5),
             "ratio");
  report.add("refault.p50_vs_kernel", pool_50 / kernel_50, "ratio");
  report.add("refault.p99_vs_kernel", pool_99 / kernel_99, "ratio");
  return report.finish();
}
