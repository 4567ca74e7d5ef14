// The driver's side of a split virtqueue (virtio 1.2, section 2.7). The rings are open to whoever
// wants to write nonsense into them.
#pragma once

// The legacy helpers are not C++.
#define VIRTIO_RING_NO_LEGACY
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel/virtio/transport.h"

namespace kernel {

inline constexpr uint16_t kQueueSizeMax = 256;
inline constexpr uint16_t kNoVector = VIRTIO_MSI_NO_VECTOR;

struct Buffer {
  const void* data;
  uint32_t length;
  bool device_writes;
};
inline Buffer readable(const void* data, size_t length) {
  return {data, static_cast<uint32_t>(length), false};
}
inline Buffer writable(void* data, size_t length) {
  return {data, static_cast<uint32_t>(length), true};
}

struct Used {
  uint16_t head;
  uint32_t length;
};

class Virtqueue {
 public:
  // Allocates rings and enables the queue. `size` 0: as large as the device allows, up to
  // kQueueSizeMax. `vector`: MSI-X entry or kNoVector. `event_idx`: negotiated.
  void open(VirtioDevice& device, uint16_t index, uint16_t size, uint16_t vector, bool event_idx);
  // Empties the rings and tells the device of them again (after a device or queue reset).
  void reopen();

  uint16_t size() const { return size_; }
  uint16_t index() const { return index_; }
  vring_desc* desc() const { return desc_; }
  vring_avail* avail() const { return avail_; }
  vring_used* used() const { return used_; }

  // Lays out a chain of descriptors; returns its head. The queue must have room.
  uint16_t add(const Buffer* buffers, size_t count);
  // The same through one indirect descriptor.
  uint16_t add_indirect(const Buffer* buffers, size_t count);
  // Makes a head visible to the device.
  void publish(uint16_t head);
  // Notifies if the device wants it (NO_NOTIFY, or avail_event); returns whether it did.
  bool kick();
  void kick_always() { device_->notify(index_); }
  bool has_used() const;
  // Takes the oldest completion and frees its descriptors.
  bool pop(Used& used);
  // Publishes, kicks and waits for one completion; fails a CHECK when none comes soon or for
  // another head. Returns the used length.
  uint32_t submit_and_wait(const Buffer* buffers, size_t count);

  // Section 2.7.7: no interrupts wanted, or (event_idx) one after `used_event` passes.
  void set_no_interrupt(bool on);
  void set_used_event(uint16_t value);
  uint16_t last_used() const { return last_used_; }
  // How many descriptors are free.
  uint16_t room() const { return free_count_; }

 private:
  void free_chain(uint16_t head);

  VirtioDevice* device_ = nullptr;
  uint16_t index_ = 0;
  uint16_t size_ = 0;
  uint16_t vector_ = kNoVector;
  bool event_idx_ = false;
  vring_desc* desc_ = nullptr;
  vring_avail* avail_ = nullptr;
  vring_used* used_ = nullptr;
  vring_desc* indirect_ = nullptr;
  uint16_t free_head_ = 0;
  uint16_t free_count_ = 0;
  uint16_t last_used_ = 0;
  uint16_t kicked_at_ = 0;
};

}  // namespace kernel
