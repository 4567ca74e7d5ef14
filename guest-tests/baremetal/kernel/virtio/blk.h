// A block device as guests use it: one request at a time, polled, on queue 0 unless told otherwise.
// Source: virtio 1.2, section 5.2.
#pragma once

#include <linux/virtio_blk.h>
#include <stdint.h>

#include "kernel/virtio/queue.h"
#include "kernel/virtio/transport.h"

namespace kernel {

inline constexpr uint32_t kSectorSize = 512;
inline constexpr unsigned kBlkQueuesMax = 4;
// What a status byte holds before the device writes it.
inline constexpr uint8_t kStatusUnwritten = 0xee;

// Header and status of one request; the device reads the one and writes the other.
struct BlkRequest {
  virtio_blk_outhdr header;
  uint8_t status;
};

class BlkDevice {
 public:
  struct Options {
    uint64_t required = 0;
    uint64_t optional = 0;
    uint16_t queues = 1;
    uint16_t queue_size = 0;
    // MSI-X entry of queue i is first_vector + i; kNoVector: none.
    uint16_t first_vector = kNoVector;
  };

  // Opens the index-th block device, negotiates, sets the queues up and goes DRIVER_OK.
  void open(const Options& options, unsigned index = 0);
  // The same again after a device reset.
  void restart();

  VirtioDevice& device() { return device_; }
  Virtqueue& queue(unsigned i = 0) { return queues_[i]; }
  uint64_t features() const { return features_; }
  uint64_t capacity() const { return device_.config64(0); }

  // One request through queue `queue`; returns the status byte. `device_writes` says which way the
  // data goes; length 0 leaves the data descriptor out. `used_length` may be null.
  uint8_t request(uint32_t type, uint64_t sector, void* data, uint32_t length, bool device_writes,
                  uint32_t* used_length = nullptr, unsigned queue = 0);
  uint8_t read(uint64_t sector, void* data, uint32_t length, unsigned queue = 0) {
    return request(VIRTIO_BLK_T_IN, sector, data, length, true, nullptr, queue);
  }
  uint8_t write(uint64_t sector, const void* data, uint32_t length) {
    return request(VIRTIO_BLK_T_OUT, sector, const_cast<void*>(data), length, false);
  }

 private:
  void negotiate();

  VirtioDevice device_;
  Virtqueue queues_[kBlkQueuesMax];
  Options options_;
  uint64_t features_ = 0;
};

// The text with which the test disks' sector n begins: "lethe sector NNNNNNNN\n". True if it does.
bool sector_has_its_text(const void* data, uint64_t sector);

}  // namespace kernel
