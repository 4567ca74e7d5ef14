// A memory balloon as a driver sees it (virtio 1.2, section 5.5). Which memory goes where is the
// caller's business (memory_return.h); here are queues and configuration.
#pragma once

#include <linux/virtio_balloon.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel/virtio/queue.h"
#include "kernel/virtio/transport.h"

namespace kernel {

inline constexpr uint64_t kBalloonFeatures =
    feature(VIRTIO_BALLOON_F_STATS_VQ) | feature(VIRTIO_BALLOON_F_DEFLATE_ON_OOM) |
    feature(VIRTIO_BALLOON_F_FREE_PAGE_HINT) | feature(VIRTIO_BALLOON_F_REPORTING);
inline constexpr size_t kBalloonPfnsMax = 1024;  // of one request: a page of them

enum class BalloonQueue : uint8_t { kInflate, kDeflate, kStats, kHint, kReport };
inline constexpr size_t kBalloonQueues = 5;

class BalloonDriver {
 public:
  struct Options {
    uint64_t required = 0;
    uint64_t optional = kBalloonFeatures;
    uint32_t poison = 0;  // told to the device if VIRTIO_BALLOON_F_PAGE_POISON is negotiated
  };

  // Finds the device, negotiates, sets up the queues (indices are dense over what was negotiated)
  // and goes DRIVER_OK. False: there is none.
  bool open(const Options& options);
  // The same again, after what was a reset; with other options if these have the same queues.
  void restart(const Options& options);

  VirtioDevice& device() { return device_; }
  bool has(unsigned feature_bit) const { return (features_ & feature(feature_bit)) != 0; }
  bool has(BalloonQueue queue) const { return index_of_[static_cast<size_t>(queue)] >= 0; }
  // The virtqueue's index; fails a CHECK for one that was not negotiated.
  uint16_t index_of(BalloonQueue queue) const;
  Virtqueue& queue(BalloonQueue queue) { return queues_[index_of(queue)]; }

  // Configuration, in 4 KiB pages: what the host asks for, and what it was given.
  uint32_t target() const { return device_.config<uint32_t>(0); }
  void set_actual(uint32_t pages) { write_config(4, pages); }
  // The host's command for free page hinting: an id, or VIRTIO_BALLOON_CMD_ID_STOP or _DONE.
  uint32_t hint_command() const { return device_.config<uint32_t>(8); }

  // One request each, waited for. `pfns`: 4 KiB page numbers, kBalloonPfnsMax at most.
  void inflate(const uint32_t* pfns, size_t count);
  void deflate(const uint32_t* pfns, size_t count);

  // Lays a readable buffer with the command id of a hint run's begin or end; waits for it.
  void send_hint_command(uint32_t id);

 private:
  void negotiate();
  void write_config(uint32_t offset, uint32_t value) {
    mmio_write<uint32_t>(device_.config_address() + offset, value);
  }

  VirtioDevice device_;
  Options options_;
  uint64_t features_ = 0;
  int index_of_[kBalloonQueues] = {};
  Virtqueue queues_[kBalloonQueues];
};

}  // namespace kernel
