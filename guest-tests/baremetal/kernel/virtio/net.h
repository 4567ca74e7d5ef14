// A network card as guests use it: polled, one pair of queues. Source: virtio 1.2, section 5.1.
#pragma once

#define class class_
#include <linux/virtio_net.h>
#undef class
#include <stdint.h>

#include "kernel/virtio/queue.h"
#include "kernel/virtio/transport.h"

namespace kernel {

inline constexpr uint32_t kNetBufferBytes = 2048;
inline constexpr unsigned kNetBuffers = 16;
inline constexpr uint32_t kNetFrameMax = 16 * 1024;

class NetCard {
 public:
  // Opens the first card, negotiates MAC, STATUS and MRG_RXBUF, gives it receive buffers.
  void open();
  VirtioDevice& device() { return device_; }
  void mac(uint8_t to[6]) const;
  bool link_up() const;
  // Sends a frame and waits for its buffer.
  void send(const void* frame, uint32_t length);
  // The next frame's length, 0 if none is there; it stays in frame() until the next call.
  uint32_t poll();
  uint8_t* frame() { return frame_; }

 private:
  VirtioDevice device_;
  Virtqueue receive_;
  Virtqueue transmit_;
  uint8_t* buffers_ = nullptr;
  uint8_t* frame_ = nullptr;
  uint8_t by_head_[kQueueSizeMax] = {};
};

}  // namespace kernel
