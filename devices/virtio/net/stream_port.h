// Frames over a Unix stream socket, each behind its length in 4 bytes, big endian: what passt(1)
// speaks, and QEMU's `-netdev stream` and `-netdev socket`.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "devices/virtio/net/net_port.h"

namespace lethe {

// passt takes no longer frame, and QEMU neither sends one: with a larger one the streams part.
inline constexpr uint32_t kStreamFrameBytesMax = 65535;
inline constexpr uint32_t kStreamPrefixBytes = 4;

// Threading: one thread; made on any.
//
// There is no header on the stream, so no offload. Sent with one system call each: large frames, or
// as many small ones as the kernel takes whole. Received: a large frame straight into the room; of
// small ones many at once into a buffer, and copied from there.
class StreamPort final : public NetPort {
 public:
  // `socket`: connected. It is made non-blocking.
  explicit StreamPort(UniqueFd socket);

  [[nodiscard]] int fd() const override { return x_socket.get(); }
  // The other end is a process of this host, which has checked or made all checksums.
  [[nodiscard]] uint64_t offloads() const override;
  [[nodiscard]] bool has_header() const override { return false; }
  [[nodiscard]] uint32_t frame_bytes_max() const override { return kStreamFrameBytesMax; }
  [[nodiscard]] uint64_t batch_bytes() const override;
  void set_guest_offloads(uint64_t /*features*/) override {}
  void set_active(bool /*active*/) override {}
  [[nodiscard]] Sent send(std::span<NetFrame> frames) override;
  [[nodiscard]] bool unsent() const override { return x_unsent_at < x_unsent.size(); }
  [[nodiscard]] NetIoState flush() override;
  [[nodiscard]] Next next() override;
  [[nodiscard]] Received receive(std::span<const iovec> room) override;
  void put_back(std::span<const iovec> room) override;
  [[nodiscard]] NetIoState skip() override;

 private:
  static constexpr size_t kAheadBytes = 64 * 1024;
  // From such a length on, frames are not read ahead.
  static constexpr uint32_t kLargeFrame = 8 * 1024;

  void keep_rest(const NetFrame& frame, uint64_t sent);
  [[nodiscard]] size_t ahead() const { return x_end - x_begin; }
  uint32_t take_ahead(std::span<const iovec> room, uint32_t offset, uint32_t bytes);
  NetIoState read(std::span<iovec> vectors, size_t& bytes);
  NetIoState fill_ahead(size_t wanted);
  NetIoState drop_skipped();

  UniqueFd x_socket;
  std::vector<uint8_t> x_unsent;  // the rest of a frame whose beginning is on the stream
  size_t x_unsent_at = 0;

  bool x_known = false;       // the next frame's length is
  uint32_t x_length = 0;      // of the next frame, or of the last one
  uint32_t x_done = 0;        // bytes of it that receive() has put into the room
  uint64_t x_skip_bytes = 0;  // of a dropped frame, still on the stream
  size_t x_begin = 0;         // x_ahead[x_begin, x_end): read and not yet taken
  size_t x_end = 0;
  std::unique_ptr<uint8_t[]> x_ahead;
  std::vector<iovec> x_vectors;
};

}  // namespace lethe
