// The credit of one stream, both ways (virtio 1.2, 5.10.6.3). Each side says how large its buffer
// is (buf_alloc) and how many bytes have left it (fwd_cnt); the other one never has more than the
// buffer's size on the way. All counters run on from 0 and wrap at 2^32; differences are exact,
// since no buffer is as large.
#pragma once

#include <cstdint>

namespace lethe {

class VsockCredit {
 public:
  // `buffer`: bytes of the guest's that we hold at most.
  explicit VsockCredit(uint32_t buffer) : x_buffer(buffer) {}

  // What the guest may send. False, with nothing counted, if it was given no credit for so many
  // bytes: it may only count on what a packet has told it.
  [[nodiscard]] bool receive(uint32_t bytes) {
    if (bytes > x_buffer - (x_received - x_told)) return false;
    x_received += bytes;
    return true;
  }
  // So many of them have left us.
  void forward(uint32_t bytes) { x_forwarded += bytes; }
  [[nodiscard]] uint32_t buffered() const { return x_received - x_forwarded; }
  // Whether the guest should hear of it even if there is nothing else to tell: it has used a
  // quarter of its credit, or more, and could have it back. So nobody waits for credit for ever,
  // and a bulk transfer costs four packets a buffer and does not run dry.
  [[nodiscard]] bool update_due() const { return x_forwarded - x_told >= x_buffer / 4; }
  // For a packet's header, which is on its way then.
  [[nodiscard]] uint32_t tell() { return x_told = x_forwarded; }
  [[nodiscard]] uint32_t buffer() const { return x_buffer; }

  // What we may send: bytes.
  [[nodiscard]] uint32_t available() const {
    return in_flight() < x_peer_buffer ? x_peer_buffer - in_flight() : 0;
  }
  [[nodiscard]] uint32_t in_flight() const { return x_sent - x_peer_forwarded; }
  void sent(uint32_t bytes) { x_sent += bytes; }
  // A packet of the guest's says so. False if it claims to have had more than was sent. Linux may
  // send its packets in another order than it has written their headers: an older count than one
  // that we have is no mistake, and tells nothing.
  [[nodiscard]] bool peer_tells(uint32_t buffer, uint32_t forwarded) {
    const uint32_t ahead = forwarded - x_peer_forwarded;
    if (ahead <= in_flight()) {
      x_peer_forwarded = forwarded;
    } else if (ahead < kHalf) {
      return false;
    }
    x_peer_buffer = buffer;
    return true;
  }

 private:
  static constexpr uint32_t kHalf = uint32_t{1} << 31;
  uint32_t x_buffer;
  uint32_t x_received = 0;
  uint32_t x_forwarded = 0;
  uint32_t x_told = 0;  // the last x_forwarded that the guest was told
  uint32_t x_sent = 0;
  uint32_t x_peer_buffer = 0;
  uint32_t x_peer_forwarded = 0;
};

}  // namespace lethe
