#include "kernel/virtio/blk.h"

#include <linux/virtio_ids.h>

#include "kernel/check.h"
#include "kernel/memory.h"

namespace kernel {

void BlkDevice::negotiate() { features_ = device_.start(options_.required, options_.optional); }

void BlkDevice::open(const Options& options, unsigned index) {
  CHECK(device_.open(VIRTIO_ID_BLOCK, index));
  CHECK(options.queues <= kBlkQueuesMax);
  options_ = options;
  negotiate();
  CHECK(device_.queue_count() >= options.queues);
  const bool event_idx = (features_ & feature(VIRTIO_RING_F_EVENT_IDX)) != 0;
  for (uint16_t i = 0; i < options.queues; ++i) {
    const uint16_t vector = options.first_vector == kNoVector
                                ? kNoVector
                                : static_cast<uint16_t>(options.first_vector + i);
    queues_[i].open(device_, i, options.queue_size, vector, event_idx);
  }
  device_.driver_ok();
}

void BlkDevice::restart() {
  negotiate();
  for (uint16_t i = 0; i < options_.queues; ++i) queues_[i].reopen();
  device_.driver_ok();
}

uint8_t BlkDevice::request(uint32_t type, uint64_t sector, void* data, uint32_t length,
                           bool device_writes, uint32_t* used_length, unsigned queue) {
  static BlkRequest r;
  r.header = {type, 0, sector};
  r.status = kStatusUnwritten;
  Buffer buffers[3];
  size_t count = 0;
  buffers[count++] = readable(&r.header, sizeof(r.header));
  if (length != 0) buffers[count++] = Buffer{data, length, device_writes};
  buffers[count++] = writable(&r.status, 1);
  const uint32_t used = queues_[queue].submit_and_wait(buffers, count);
  if (used_length != nullptr) *used_length = used;
  return __atomic_load_n(&r.status, __ATOMIC_ACQUIRE);
}

bool sector_has_its_text(const void* data, uint64_t sector) {
  char text[] = "lethe sector 00000000\n";
  for (size_t i = 20; i >= 13; --i, sector /= 10) text[i] = static_cast<char>('0' + sector % 10);
  return memcmp(data, text, sizeof(text) - 1) == 0;
}

}  // namespace kernel
