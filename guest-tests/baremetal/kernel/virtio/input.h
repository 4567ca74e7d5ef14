// virtio-input as a driver sees it (virtio 1.2, section 5.8): a keyboard or a tablet.
#pragma once

#include <linux/virtio_input.h>
#include <stdint.h>

#include "kernel/virtio/queue.h"
#include "kernel/virtio/transport.h"

namespace kernel {

class InputDriver {
 public:
  // The index-th input device. False: there is none.
  bool open(unsigned index);
  void restart();

  VirtioDevice& device() { return device_; }
  Virtqueue& events() { return events_; }
  Virtqueue& status() { return status_; }

  // Selects a part of the configuration (section 5.8.5.1); returns its size in bytes.
  uint8_t select(uint8_t what, uint8_t sub);
  uint8_t byte(unsigned at) const { return device_.config<uint8_t>(8 + at); }
  uint32_t word(unsigned at) const { return device_.config<uint32_t>(8 + at); }
  // Whether the bitmap of event type `type` has `code`.
  bool has(uint8_t type, uint16_t code);

  // The next event; false: none. Buffers go back to the device at once, unless held.
  bool next(virtio_input_event& event);
  // Events stay in the device's hands: no buffer is given back until release().
  void hold() { held_ = true; }
  void release();

 private:
  void fill();
  void give(uint16_t slot);

  static constexpr uint16_t kBuffers = 64;
  VirtioDevice device_;
  Virtqueue events_;
  Virtqueue status_;
  virtio_input_event* buffers_ = nullptr;
  uint16_t slot_of_[kQueueSizeMax] = {};  // by head
  bool held_ = false;
  uint16_t kept_[kBuffers] = {};
  uint16_t kept_count_ = 0;
};

}  // namespace kernel
