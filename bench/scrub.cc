// How fast is scrubbing, and what does a busy thread on the same core lose to it?
//
// Bandwidth: scrub() over 256 MiB of huge pages, against a non-temporal memset written plainly
// here; in turn, chunk by chunk.
// Loss: a thread computes on the first core, and the pool's worker is pinned to it, too. In windows
// of 100 ms, in turn, the worker has dirty chunks without end, or none. They come from the last
// core, where the pool's other thread is.
#include <dirent.h>
#include <emmintrin.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <string>

#include "bench/pool_bench.h"
#include "bench/report.h"
#include "memory/scrub.h"

namespace lethe {
namespace {

constexpr size_t kChunks = 128;
constexpr int kPasses = 20;

void memset_nt(uint8_t* at, size_t size) {
  const __m128i zero = _mm_setzero_si128();
  for (size_t i = 0; i < size; i += 16) _mm_stream_si128(reinterpret_cast<__m128i*>(at + i), zero);
  _mm_sfence();
}

void measure_bandwidth(BenchReport& report) {
  const PooledGuest memory(kChunks * kChunkBytes, {});
  std::fill_n(memory.chunk(0), kChunks * kChunkBytes, uint8_t{1});
  std::vector<double> ours, plain;  // seconds a chunk
  for (int pass = 0; pass < kPasses; ++pass) {
    for (size_t i = 0; i < kChunks; ++i) {
      const bool our_turn = (i + static_cast<size_t>(pass)) % 2 == 0;
      const auto begin = BenchClock::now();
      if (our_turn) {
        scrub(memory.chunk(i), kChunkBytes, 0);
      } else {
        memset_nt(memory.chunk(i), kChunkBytes);
      }
      (our_turn ? ours : plain).push_back(seconds_since(begin));
    }
  }
  const double ours_s = quantile(ours, 0.5);
  const double plain_s = quantile(plain, 0.5);
  report.add("scrub.gb_per_s", kChunkBytes / ours_s / 1e9, "GB/s");
  report.add("scrub.memset_nt_gb_per_s", kChunkBytes / plain_s / 1e9, "GB/s");
  report.add("scrub.vs_memset_nt", plain_s / ours_s, "ratio");
}

void pin(pid_t thread, long core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(core), &set);
  if (::sched_setaffinity(thread, sizeof set, &set) != 0) give_up("can't pin a thread");
}

// 0 while there is none.
pid_t find_thread(const std::string& wanted) {
  DIR* const tasks = ::opendir("/proc/self/task");
  if (tasks == nullptr) give_up("/proc is missing");
  pid_t found = 0;
  while (const dirent* const entry = ::readdir(tasks)) {
    std::ifstream file(std::string("/proc/self/task/") + entry->d_name + "/comm");
    std::string name;
    if (std::getline(file, name) && name == wanted) found = std::atoi(entry->d_name);
  }
  ::closedir(tasks);
  return found;
}

pid_t thread_called(const std::string& wanted) {
  const auto begin = BenchClock::now();
  while (true) {
    if (const pid_t found = find_thread(wanted); found != 0) return found;
    // It takes its name when it first runs, which on a busy host may be late.
    if (seconds_since(begin) > 20) give_up("a thread of the pool is missing");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Gives back one chunk after the other while it is told to, so that this much is dirty.
constexpr uint64_t kDirtyMin = 16 * kMiB;
void supply(const PooledGuest& guest, std::atomic<bool>& stop, std::atomic<size_t>& next) {
  while (!stop) {
    const size_t chunk = next;
    if (chunk < kChunks && guest.pool->stats().dirty_bytes < kDirtyMin) {
      (void)guest.pool->take(guest.chunk(chunk));
      ++next;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
}

// The pool off and empty, and all memory there again, by the kernel.
void refill(const PooledGuest& guest) {
  guest.pool->set_bytes_max(0);
  for (size_t i = 0; i < kChunks; ++i) *static_cast<volatile uint8_t*>(guest.chunk(i)) = 1;
}

// Work of a guest: it computes, and walks over 128 KiB. How many rounds in the time?
uint64_t busy(std::chrono::milliseconds time, std::vector<uint64_t>& words) {
  const auto end = BenchClock::now() + time;
  uint64_t rounds = 0;
  uint64_t x = 1;
  while (BenchClock::now() < end) {
    for (uint64_t& word : words) {
      x = x * 6364136223846793005U + 1442695040888963407U;
      word ^= x;
    }
    ++rounds;
  }
  return rounds;
}

void measure_loss(BenchReport& report) {
  constexpr int kWindows = 40;
  const auto window = std::chrono::milliseconds(100);
  const long last = ::sysconf(_SC_NPROCESSORS_ONLN) - 1;
  if (last < 1) give_up("one processor is not enough for this");
  ScrubPoolOptions options;
  options.bytes_max = kChunks * kChunkBytes;
  options.forget_max = std::chrono::minutes(10);
  PooledGuest guest(kChunks * kChunkBytes, options);
  refill(guest);
  guest.pool->set_bytes_max(options.bytes_max);
  // Until one is taken: from then on the threads are there.
  for (size_t i = 0; guest.pool->stats().moved_bytes == 0; ++i) {
    if (i == kChunks) give_up("the pool refuses every chunk");
    guest.give_back(i);
  }
  pin(thread_called("scrub0"), 0);
  pin(thread_called("fault"), last);
  std::atomic<bool> stop{false};
  std::atomic<size_t> next{kChunks};
  std::thread supplier([&] {
    pin(0, last);
    supply(guest, stop, next);
  });
  pin(0, 0);
  std::vector<uint64_t> words(16 * 1024, 1);
  std::vector<double> kept;  // of its pace, in a pair of windows
  uint64_t scrubbed = 0;
  int dry = 0;
  for (int i = 0; i < kWindows; ++i) {
    refill(guest);
    const auto without = static_cast<double>(busy(window, words));
    guest.pool->set_bytes_max(options.bytes_max);
    next = 0;
    const auto begin = BenchClock::now();
    while (guest.pool->stats().dirty_bytes < kDirtyMin / 2)
      if (seconds_since(begin) > 10) give_up("the pool gets no dirty chunks");
    const uint64_t before = guest.pool->stats().scrubbed_bytes;
    kept.push_back(static_cast<double>(busy(window, words)) / without);
    scrubbed += guest.pool->stats().scrubbed_bytes - before;
    if (guest.pool->stats().dirty_bytes == 0) ++dry;
    next = kChunks;
  }
  stop = true;
  supplier.join();
  report.add("scrub.neighbour_scrubbed_mb", static_cast<double>(scrubbed) / 1e6, "MB");
  report.add("scrub.neighbour_windows_dry", dry, "count");
  report.add("scrub.neighbour_loss", std::max(0.0, 1 - quantile(kept, 0.5)), "ratio");
}

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  lethe::BenchReport report(argc, argv);
  lethe::measure_bandwidth(report);
  lethe::measure_loss(report);
  return report.finish();
}
