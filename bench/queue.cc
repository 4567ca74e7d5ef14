// What a virtqueue costs: a chain of three descriptors (a 16-byte header to read, 4 KiB of data to
// write, a status byte to write, as a block read has) popped, read and completed.
//
// FakeDriver adds a batch of chains, then the device's part alone is timed, with one look at the
// interrupt's suppression a batch. The rings are in this core's cache. Google Benchmark counts the
// batches; medians over its repetitions.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "bench/allocations.h"
#include "bench/report.h"
#include "devices/virtio/fake_driver.h"
#include "devices/virtio/queue.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint16_t kQueueSize = 256;
constexpr int kBatch = 64;
constexpr int kBatches = 200;
constexpr int kRepetitions = 101;
constexpr uint64_t kFeatures =
    uint64_t{1} << VIRTIO_RING_F_EVENT_IDX | uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC;

class NoInterrupt : public Interrupt {
 public:
  void signal() override { ++signals; }
  uint64_t signals = 0;
};

struct Setup {
  Setup() {
    constexpr GuestMemory::Range kRange{GuestAddr{0}, 64 * kMiB};
    memory = GuestMemory::create({&kRange, 1}, {}).value();
    heap = std::make_unique<GuestHeap>(*memory, GuestAddr{0}, 64 * kMiB);
    driver = std::make_unique<FakeDriver>(*heap, kQueueSize, kFeatures);
    queue = Queue::create(*memory, driver->layout(), kFeatures, interrupt, counters).value();
    buffers = {
        {{heap->alloc(16), 16, false}, {heap->alloc(4096), 4096, true}, {heap->alloc(1), 1, true}}};
  }
  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<GuestHeap> heap;
  std::unique_ptr<FakeDriver> driver;
  NoInterrupt interrupt;
  QueueCounters counters;
  std::unique_ptr<Queue> queue;
  std::array<FakeBuffer, 3> buffers;
};

[[noreturn]] void give_up(const char* what) {
  std::fprintf(stderr, "bench_queue: %s\n", what);
  std::exit(1);
}

// The device's part for one batch; what it read, so that nothing is optimised away.
uint64_t device_batch(Queue& queue, int& chains) {
  uint64_t sum = 0;
  while (auto chain = queue.pop()) {
    std::array<uint8_t, 16> header;
    sum += chain->copy_from_readable(0, header) + header[0];
    const std::array<uint8_t, 1> status{0};
    sum += chain->copy_to_writable(chain->writable_bytes() - 1, status);
    chain->complete(static_cast<uint32_t>(chain->writable_bytes()));
    ++chains;
  }
  queue.interrupt_if_needed();
  return sum;
}

// One iteration is one batch. The counters are sums over the iterations.
void pop_read_complete(benchmark::State& state, FakeDriver::Table table) {
  using Seconds = std::chrono::duration<double>;
  Setup setup;
  Seconds round_trip{0};
  const uint64_t before = allocations();
  for (auto iteration : state) {
    (void)iteration;
    const auto begin = Clock::now();
    for (int i = 0; i < kBatch; ++i)
      if (!setup.driver->add(setup.buffers, table)) give_up("the ring is full");
    (void)setup.driver->kick_wanted();
    int chains = 0;
    const auto device_begin = Clock::now();
    benchmark::DoNotOptimize(device_batch(*setup.queue, chains));
    state.SetIterationTime(Seconds(Clock::now() - device_begin).count());
    if (chains != kBatch) give_up("a chain is missing");
    int used = 0;
    while (setup.driver->poll_used()) ++used;
    (void)setup.driver->enable_interrupts();
    round_trip += Clock::now() - begin;
    if (used != kBatch) give_up("a chain was not used");
  }
  const uint64_t made =
      allocations() - before;  // before the counters, which make some of their own
  state.counters["round_trip_s"] = round_trip.count();
  state.counters["allocations"] = static_cast<double>(made);
}

// Keeps what the repetitions measured.
class Collector : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration) continue;
      const double chains = static_cast<double>(run.iterations) * kBatch;
      x_device_ns.push_back(run.real_accumulated_time * 1e9 / chains);
      x_round_trip_ns.push_back(run.counters.at("round_trip_s") * 1e9 / chains);
      x_allocations += run.counters.at("allocations");
    }
  }
  [[nodiscard]] double device_ns() const { return median(x_device_ns); }
  [[nodiscard]] double round_trip_ns() const { return median(x_round_trip_ns); }
  [[nodiscard]] double allocations() const { return x_allocations; }

 private:
  std::vector<double> x_device_ns;
  std::vector<double> x_round_trip_ns;
  double x_allocations = 0;
};

Collector measure(const char* name, FakeDriver::Table table) {
  benchmark::RegisterBenchmark(name, pop_read_complete, table)
      ->UseManualTime()
      ->Iterations(kBatches)
      ->Repetitions(kRepetitions);
  Collector collector;
  benchmark::RunSpecifiedBenchmarks(&collector, name);
  return collector;
}

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  const Collector direct = measure("direct_chain", FakeDriver::Table::kDirect);
  const Collector indirect = measure("indirect_table", FakeDriver::Table::kIndirect);
  report.add("queue.round_trip_ns_per_chain", direct.round_trip_ns(), "ns");
  report.add("queue.indirect_ns_per_chain", indirect.device_ns(), "ns");
  report.add("queue.ns_per_chain", direct.device_ns(), "ns");
  report.add("queue.allocations", direct.allocations() + indirect.allocations(), "count");
  return report.finish();
}
