// What the way of returned memory costs: free page reports through the real balloon device, with
// policy discard, against a bare loop of madvise() over the same ranges.
//
// As Linux does it: ranges of 2 MiB, up to 32 in a chain, in the order of a free list (shuffled
// runs); the ring is kept full, so that several chains are in flight. Memory is populated alike for
// both, outside the timing, and looked at afterwards: all of it must be gone. Device and loop take
// turns; medians over the rounds.
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "bench/report.h"
#include "devices/virtio/balloon/balloon.h"
#include "devices/virtio/fake_transport.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr uint64_t kHeap = 32 * kMiB;  // the driver's rings
constexpr uint64_t kBytes = 1 * kGiB;  // returned in a round
constexpr uint64_t kRangeBytes = 2 * kMiB;
constexpr size_t kChainRanges = 32;
constexpr size_t kRunRanges = 4;  // neighbours that come together
constexpr int kRounds = 31;
constexpr int kWarmUp = 1;

struct Sample {
  double seconds = 0;
  double cpu_seconds = 0;
};

[[noreturn]] void give_up(const char* why) {
  std::fprintf(stderr, "bench_return: %s\n", why);
  std::exit(1);
}

double thread_cpu_seconds() {
  timespec time{};
  (void)::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

class Bench {
 public:
  Bench() {
    const GuestMemory::Range ram{.start = GuestAddr{0}, .size = kHeap + kBytes};
    x_memory = GuestMemory::create({&ram, 1}, {}).value();
    x_pipeline = std::make_unique<ReturnPipeline>(*x_memory);
    x_device = BalloonDevice::create(*x_memory, *x_pipeline, {.statistics = false});
    x_guest = std::make_unique<FakeTransport>(*x_memory, *x_device);
    // Linux's balloon driver uses no indirect descriptors.
    x_guest->start(~(uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC), BalloonDevice::kQueueSize);
    x_queue = 3;  // inflate, deflate, hints, reports
    x_host = x_memory->slice(GuestAddr{kHeap}, kBytes)->data;
    shuffle();
  }

  Sample device() {
    populate();
    FakeDriver& driver = x_guest->driver(x_queue);
    FakeInterrupt& interrupt = x_guest->interrupt(x_queue);
    const auto cpu_before = x_device->thread_cpu_time();
    const auto begin = Clock::now();
    size_t next = 0;
    while (next < x_ranges.size() || driver.outstanding() > 0) {
      bool added = false;
      for (; next < x_ranges.size() && driver.free_descriptors() >= kChainRanges; added = true) {
        const size_t count = std::min(kChainRanges, x_ranges.size() - next);
        if (!driver.prepare(std::span(x_ranges).subspan(next, count), FakeDriver::Table::kDirect))
          give_up("a chain does not fit");
        next += count;
      }
      if (added) {
        driver.publish();
        x_guest->kick_if_wanted(x_queue);
      }
      if (!driver.wait_used(interrupt, deadline_in(FakeTransport::kPatience)))
        give_up("the device does not answer");
      while (driver.poll_used()) {
      }
    }
    const auto end = Clock::now();
    const auto cpu_after = x_device->thread_cpu_time();
    verify();
    return {Seconds(end - begin).count(), Seconds(cpu_after - cpu_before).count()};
  }

  Sample bare() {
    populate();
    const double cpu_before = thread_cpu_seconds();
    const auto begin = Clock::now();
    for (const FakeBuffer& range : x_ranges) {
      if (::madvise(x_host + (range.address.value - kHeap), range.size, MADV_DONTNEED) != 0)
        give_up("madvise failed");
    }
    const auto end = Clock::now();
    const double cpu_after = thread_cpu_seconds();
    verify();
    return {Seconds(end - begin).count(), cpu_after - cpu_before};
  }

 private:
  void shuffle() {
    std::vector<size_t> runs(kBytes / kRangeBytes / kRunRanges);
    std::iota(runs.begin(), runs.end(), size_t{0});
    std::ranges::shuffle(runs, std::mt19937_64(1));
    for (const size_t run : runs) {
      for (size_t i = 0; i < kRunRanges; ++i)
        x_ranges.push_back({GuestAddr{kHeap + (run * kRunRanges + i) * kRangeBytes},
                            static_cast<uint32_t>(kRangeBytes), true});
    }
  }
  void populate() {
    for (uint64_t at = 0; at < kBytes; at += 4096) x_host[at] = 1;
    if (resident_bytes(x_host, kBytes) != kBytes) give_up("the memory is not all there");
  }
  void verify() {
    if (resident_bytes(x_host, kBytes) != 0) give_up("memory was reported and is still there");
  }

  std::unique_ptr<GuestMemory> x_memory;
  std::unique_ptr<ReturnPipeline> x_pipeline;
  std::unique_ptr<BalloonDevice> x_device;
  std::unique_ptr<FakeTransport> x_guest;
  std::vector<FakeBuffer> x_ranges;
  uint16_t x_queue = 0;
  uint8_t* x_host = nullptr;
};

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  Bench bench;
  std::vector<double> device_seconds;
  std::vector<double> device_cpu;
  std::vector<double> bare_seconds;
  std::vector<double> bare_cpu;
  for (int round = -kWarmUp; round < kRounds; ++round) {
    const Sample device = bench.device();
    const Sample bare = bench.bare();
    if (round < 0) continue;
    device_seconds.push_back(device.seconds);
    device_cpu.push_back(device.cpu_seconds);
    bare_seconds.push_back(bare.seconds);
    bare_cpu.push_back(bare.cpu_seconds);
  }
  constexpr double kGib = static_cast<double>(kBytes) / static_cast<double>(kGiB);
  constexpr double kChains = static_cast<double>(kBytes / kRangeBytes / kChainRanges);
  report.add("return.gib_per_s", kGib / median(device_seconds), "GiB/s");
  report.add("return.bare_gib_per_s", kGib / median(bare_seconds), "GiB/s");
  report.add("return.cpu_us_per_report", median(device_cpu) / kChains * 1e6, "us");
  report.add("return.vs_bare_madvise", median(bare_seconds) / median(device_seconds), "ratio");
  report.add("return.cpu_vs_bare_madvise", median(device_cpu) / median(bare_cpu), "ratio");
  return report.finish();
}
