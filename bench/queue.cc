// What a virtqueue costs: a chain of three descriptors (a 16-byte header to read, 4 KiB of data to
// write, a status byte to write, as a block read has) popped, read and completed.
//
// FakeDriver adds a batch of chains, then the device's part alone is timed, with one look at the
// interrupt's suppression a batch. The rings are in this core's cache. Medians over the batches.
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
constexpr int kBatches = 20'000;
constexpr int kWarmUp = 100;
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

struct Figures {
  double device_ns = 0;
  double round_trip_ns = 0;  // the driver's part too
  uint64_t allocations = 0;
};

Figures measure(FakeDriver::Table table) {
  Setup setup;
  std::vector<double> device;
  std::vector<double> round_trip;
  device.reserve(kBatches);
  round_trip.reserve(kBatches);
  uint64_t before = 0;
  for (int batch = -kWarmUp; batch < kBatches; ++batch) {
    if (batch == 0) before = allocations();
    const auto begin = Clock::now();
    for (int i = 0; i < kBatch; ++i)
      if (!setup.driver->add(setup.buffers, table)) give_up("the ring is full");
    (void)setup.driver->kick_wanted();
    int chains = 0;
    const auto device_begin = Clock::now();
    const uint64_t sum = device_batch(*setup.queue, chains);
    const auto device_end = Clock::now();
    asm volatile("" ::"r"(sum));
    if (chains != kBatch) give_up("a chain is missing");
    int used = 0;
    while (setup.driver->poll_used()) ++used;
    (void)setup.driver->enable_interrupts();
    const auto end = Clock::now();
    if (used != kBatch) give_up("a chain was not used");
    if (batch < 0) continue;
    using Ns = std::chrono::duration<double, std::nano>;
    device.push_back(Ns(device_end - device_begin).count() / kBatch);
    round_trip.push_back(Ns(end - begin).count() / kBatch);
  }
  const uint64_t made = allocations() - before;  // before the medians, which make some of their own
  return {.device_ns = median(device), .round_trip_ns = median(round_trip), .allocations = made};
}

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  const Figures direct = measure(FakeDriver::Table::kDirect);
  const Figures indirect = measure(FakeDriver::Table::kIndirect);
  report.add("queue.round_trip_ns_per_chain", direct.round_trip_ns, "ns");
  report.add("queue.indirect_ns_per_chain", indirect.device_ns, "ns");
  report.add("queue.ns_per_chain", direct.device_ns, "ns");
  report.add("queue.allocations", static_cast<double>(direct.allocations + indirect.allocations),
             "count");
  return report.finish();
}
