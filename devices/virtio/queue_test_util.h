// A queue, its driver and what they stand on, for the queue's tests and its fuzzer.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "devices/virtio/fake_driver.h"
#include "devices/virtio/queue.h"
#include "memory/guest_memory.h"

namespace lethe {

inline constexpr uint64_t kEventIdx = uint64_t{1} << VIRTIO_RING_F_EVENT_IDX;
inline constexpr uint64_t kIndirect = uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC;
inline constexpr uint64_t kRingFeatures = kEventIdx | kIndirect;

// RAM as the machine has it: from 0, a hole, from 4 GiB. The rings are in the first part; what lies
// above `kFreeStart` there, and all of the second, is the test's.
struct QueueRig {
  static constexpr uint64_t kLowSize = 32 * kMiB;
  static constexpr GuestAddr kFreeStart{24 * kMiB};
  static constexpr GuestAddr kHighStart{4 * kGiB};
  static constexpr uint64_t kHighSize = 3 * kGiB;  // lazily

  explicit QueueRig(uint16_t size, uint64_t features = kRingFeatures)
      : memory(make_memory()),
        heap(*memory, GuestAddr{0}, kFreeStart.value),
        driver(heap, size, features),
        queue(Queue::create(*memory, driver.layout(), features, interrupt, counters).value()) {}

  static std::unique_ptr<GuestMemory> make_memory() {
    const std::array ranges{GuestMemory::Range{GuestAddr{0}, kLowSize},
                            GuestMemory::Range{kHighStart, kHighSize}};
    return GuestMemory::create(ranges, {.thp = false}).value();
  }

  std::unique_ptr<GuestMemory> memory;
  GuestHeap heap;
  FakeDriver driver;
  FakeInterrupt interrupt;
  QueueCounters counters;
  std::unique_ptr<Queue> queue;
};

}  // namespace lethe
