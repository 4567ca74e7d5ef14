#include "kernel/virtio/net.h"

#include <linux/virtio_ids.h>

#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr uint32_t kHeader = sizeof(virtio_net_hdr_v1);
constexpr uint32_t kStatusOffset = 6;

}  // namespace

void NetCard::open() {
  CHECK(device_.open(VIRTIO_ID_NET));
  device_.start(feature(VIRTIO_NET_F_MAC) | feature(VIRTIO_NET_F_STATUS) |
                feature(VIRTIO_NET_F_MRG_RXBUF));
  receive_.open(device_, 0, 64, kNoVector, false);
  transmit_.open(device_, 1, 64, kNoVector, false);
  device_.driver_ok();
  buffers_ = static_cast<uint8_t*>(alloc_pages(kNetBuffers * kNetBufferBytes / kPageSize));
  frame_ = static_cast<uint8_t*>(alloc_pages(kNetFrameMax / kPageSize));
  for (uint8_t i = 0; i < kNetBuffers; ++i) {
    const Buffer room = writable(buffers_ + i * kNetBufferBytes, kNetBufferBytes);
    const uint16_t head = receive_.add(&room, 1);
    by_head_[head] = i;
    receive_.publish(head);
  }
  receive_.kick();
}

void NetCard::mac(uint8_t to[6]) const {
  for (uint32_t i = 0; i < 6; ++i) to[i] = device_.config<uint8_t>(i);
}

bool NetCard::link_up() const {
  return (device_.config<uint16_t>(kStatusOffset) & VIRTIO_NET_S_LINK_UP) != 0;
}

void NetCard::send(const void* frame, uint32_t length) {
  static virtio_net_hdr_v1 header;
  memset(&header, 0, sizeof(header));
  const Buffer buffers[] = {readable(&header, kHeader), readable(frame, length)};
  CHECK_EQ(transmit_.submit_and_wait(buffers, 2), 0);
}

uint32_t NetCard::poll() {
  Used used;
  if (!receive_.pop(used)) return 0;
  uint32_t length = 0;
  unsigned left = 0;
  for (bool first = true; first || left > 0; first = false, --left) {
    // All of a frame's buffers are there with the first one, or about to be.
    if (!first) CHECK_SOON(receive_.pop(used));
    uint8_t* const data = buffers_ + by_head_[used.head] * kNetBufferBytes;
    uint32_t skip = 0;
    if (first) {
      virtio_net_hdr_v1 header;
      memcpy(&header, data, kHeader);
      CHECK(header.num_buffers >= 1 && header.num_buffers <= kNetBuffers);
      left = header.num_buffers;
      skip = kHeader;
    }
    CHECK(used.length >= skip && used.length <= kNetBufferBytes);
    CHECK(length + used.length - skip <= kNetFrameMax);
    memcpy(frame_ + length, data + skip, used.length - skip);
    length += used.length - skip;
    const Buffer room = writable(data, kNetBufferBytes);
    const uint16_t head = receive_.add(&room, 1);
    by_head_[head] = static_cast<uint8_t>((data - buffers_) / kNetBufferBytes);
    receive_.publish(head);
    if (left == 1) break;
  }
  receive_.kick();
  return length;
}

}  // namespace kernel
