// The host's end of one pair of queues: a tap's queue, or a stream of frames to another process.
#pragma once

#include <sys/uio.h>
#include "devices/virtio/net/net_uapi.h"

#include <cstdint>
#include <span>

#include "base/result.h"

namespace lethe {

// One frame from the guest, for a port to send.
struct NetFrame {
  virtio_net_hdr_v1 header{};  // checked (check_frame)
  uint32_t bytes = 0;          // without the header
  // The guest's bytes, from vectors[1] on: vectors[0] is for what the port puts in front. Frames
  // sent together have theirs one behind the other in memory.
  std::span<iovec> vectors;
};

enum class NetIoState : uint8_t {
  kDone,
  kWouldBlock,  // again, when the descriptor is ready
  kLost,        // there is no other end any more: the port is of no use
};

// Threading: one thread.
class NetPort {
 public:
  virtual ~NetPort() = default;

  // What epoll is to watch; non-blocking.
  [[nodiscard]] virtual int fd() const = 0;
  // The VIRTIO_NET_F_* offloads that the other end can do: CSUM, HOST_*, GUEST_*. Fixed.
  [[nodiscard]] virtual uint64_t offloads() const = 0;
  // Whether virtio's header goes to and comes from the other end. Fixed.
  [[nodiscard]] virtual bool has_header() const = 0;
  // The longest frame that it takes, without the header. Fixed.
  [[nodiscard]] virtual uint32_t frame_bytes_max() const = 0;

  // Tells the other end which of offloads() the guest's side understands: GUEST_* bits.
  virtual void set_guest_offloads(uint64_t features) = 0;
  // Whether frames shall come in here, of the several ports of a device.
  virtual void set_active(bool active) = 0;

  // How many bytes of frames it can do with one system call. Fixed.
  [[nodiscard]] virtual uint64_t batch_bytes() const { return UINT64_MAX; }

  struct Sent {
    size_t taken = 0;   // frames from the front that are done with
    size_t failed = 0;  // of these, how many the other end refused
    NetIoState state = NetIoState::kDone;
  };
  // Sends the frames in order. kWouldBlock: those from `taken` on are for later.
  [[nodiscard]] virtual Sent send(std::span<NetFrame> frames) = 0;
  // More to send that send() took and the other end did not: flush() when it is writable.
  [[nodiscard]] virtual bool unsent() const { return false; }
  [[nodiscard]] virtual NetIoState flush() { return NetIoState::kDone; }

  struct Next {
    NetIoState state = NetIoState::kDone;
    uint32_t bytes = 0;  // of the next frame, without the header; 0: not known before it is read
  };
  [[nodiscard]] virtual Next next() = 0;

  struct Received {
    NetIoState state = NetIoState::kDone;
    uint64_t bytes = 0;      // with the header, if has_header()
    bool truncated = false;  // there was too little room: the frame is gone
  };
  // Receives one frame into `room`, which starts with the header if has_header(). kWouldBlock: call
  // again with the same room, or skip(). If next() knows the frame's length, there is enough room.
  [[nodiscard]] virtual Received receive(std::span<const iovec> room) = 0;
  // The part of a frame that receive() has put into `room` comes again with the next receive().
  virtual void put_back(std::span<const iovec> /*room*/) {}
  // Drops the next frame, or the one that receive() has begun. kDone: it is gone, or will be.
  [[nodiscard]] virtual NetIoState skip() = 0;
};

}  // namespace lethe
