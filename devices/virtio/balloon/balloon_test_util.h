// For tests of the balloon: a guest with known memory, and the chains its driver would send.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "devices/virtio/balloon/balloon.h"
#include "devices/virtio/balloon/balloon_work.h"
#include "devices/virtio/fake_transport.h"
#include "devices/virtio/loop_test_util.h"
#include "memory/return_test_util.h"

namespace lethe {

inline constexpr uint64_t kPage = 4096;

// Guest memory of `size` from 0; its first 32 MiB are the driver's heap and rings, the rest is for
// tests to give away.
struct BalloonGuest {
  static constexpr uint64_t kFree = 32 * kMiB;

  explicit BalloonGuest(uint64_t size = 128 * kMiB, const BalloonOptions& options = {},
                        ReturnPipelineOptions returns = {}, uint64_t wanted = ~uint64_t{0},
                        const GuestMemoryOptions& backing = {}) {
    const GuestMemory::Range ram{.start = GuestAddr{0}, .size = size};
    memory = GuestMemory::create({&ram, 1}, backing).value();
    pipeline = std::make_unique<ReturnPipeline>(*memory, std::move(returns));
    device = BalloonDevice::create(*memory, *pipeline, options);
    guest = std::make_unique<FakeTransport>(*memory, *device);
    guest->start(wanted, BalloonDevice::kQueueSize);
  }
  [[nodiscard]] uint16_t index(BalloonQueue role) const {
    for (uint16_t i = 0; i < BalloonDevice::kQueues; ++i)
      if (balloon_queue(guest->features(), i) == role) return i;
    ADD_FAILURE() << "no such queue";
    return 0;
  }
  FakeDriver& driver(BalloonQueue role) { return guest->driver(index(role)); }

  // One request there and back.
  bool request(BalloonQueue role, std::span<const FakeBuffer> buffers,
               FakeDriver::Table table = FakeDriver::Table::kDirect) {
    return guest->request(index(role), buffers, table) == 0u;
  }
  FakeBuffer pfn_buffer(const std::vector<uint32_t>& pfns) {
    // SAFETY: integers seen as their bytes.
    const GuestAddr at = guest->heap().put(
        {reinterpret_cast<const uint8_t*>(pfns.data()), pfns.size() * sizeof(uint32_t)});
    return {at, static_cast<uint32_t>(pfns.size() * sizeof(uint32_t)), false};
  }
  bool inflate(const std::vector<uint32_t>& pfns) {
    const FakeBuffer buffer = pfn_buffer(pfns);
    return request(BalloonQueue::kInflate, {&buffer, 1});
  }
  bool report(const std::vector<FakeBuffer>& ranges) {
    return request(BalloonQueue::kReport, ranges);
  }
  static FakeBuffer range(uint64_t start, uint64_t bytes) {
    return {GuestAddr{start}, static_cast<uint32_t>(bytes), true};
  }
  [[nodiscard]] bool reads(uint64_t start, uint64_t bytes, uint8_t value) const {
    return all_bytes_are(*memory, start, bytes, value);
  }
  [[nodiscard]] virtio_balloon_config config() const {
    virtio_balloon_config config{};
    // SAFETY: the structure, seen as its bytes.
    device->read_config(0, {reinterpret_cast<uint8_t*>(&config), sizeof config});
    return config;
  }
  void write_config(size_t offset, uint32_t value) {
    device->write_config(static_cast<uint32_t>(offset),
                         {reinterpret_cast<const uint8_t*>(&value), sizeof value});
  }
  [[nodiscard]] const ReturnCounters& returned() const { return pipeline->counters(); }
  [[nodiscard]] const BalloonCounters& counters() const { return device->counters(); }

  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<ReturnPipeline> pipeline;
  std::unique_ptr<BalloonDevice> device;
  std::unique_ptr<FakeTransport> guest;
};

}  // namespace lethe
