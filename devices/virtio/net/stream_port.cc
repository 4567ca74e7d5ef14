#include "devices/virtio/net/stream_port.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "devices/virtio/net/frame_check.h"

namespace lethe {
namespace {

constexpr unsigned kEmptyFramesMax = 1024;  // in a row

// What the kernel puts into one buffer of a Unix stream (net/unix/af_unix.c: SKB_MAX_HEAD(0) and
// UNIX_SKB_FRAGS_SZ), a bit less: it takes so much whole or not at all.
constexpr uint64_t kKernelBufferBytes = 36'000;
// passt reads the rest of a frame that came in part with one more read, and takes what that gives
// for all of it; so no frame may be in more than two buffers.
constexpr uint64_t kGroupBytesMax = 2 * kKernelBufferBytes;

NetIoState state_of(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR || error == ENOBUFS ||
                 error == ENOMEM
             ? NetIoState::kWouldBlock
             : NetIoState::kLost;
}

// `vectors` from byte `offset` on, at most `bytes` of them, appended to `to`.
void append_part(std::vector<iovec>& to, std::span<const iovec> vectors, uint64_t offset,
                 uint64_t bytes) {
  for (const iovec& vector : vectors) {
    if (bytes == 0) return;
    if (offset >= vector.iov_len) {
      offset -= vector.iov_len;
      continue;
    }
    const size_t piece = std::min<uint64_t>(vector.iov_len - offset, bytes);
    // SAFETY: within the vector, as just computed.
    to.push_back({.iov_base = static_cast<uint8_t*>(vector.iov_base) + offset, .iov_len = piece});
    bytes -= piece;
    offset = 0;
  }
}

struct Group {  // frames that go with one system call
  size_t frames = 0;
  size_t vectors = 0;
  uint64_t bytes = 0;  // prefixes included
};

// At the front of `frames`.
Group next_group(std::span<const NetFrame> frames) {
  Group group;
  for (const NetFrame& frame : frames) {
    const uint64_t whole = frame.bytes + kStreamPrefixBytes;
    const bool fits =
        group.bytes + whole <= kGroupBytesMax && group.vectors + frame.vectors.size() <= IOV_MAX;
    if (group.frames > 0 && !fits) break;
    ++group.frames;
    group.vectors += frame.vectors.size();
    group.bytes += whole;
  }
  return group;
}

}  // namespace

StreamPort::StreamPort(UniqueFd socket)
    : x_socket(std::move(socket)), x_ahead(std::make_unique_for_overwrite<uint8_t[]>(kAheadBytes)) {
  const int flags = ::fcntl(x_socket.get(), F_GETFL);
  (void)::fcntl(x_socket.get(), F_SETFL, flags | O_NONBLOCK);
}

uint64_t StreamPort::batch_bytes() const { return kGroupBytesMax; }

uint64_t StreamPort::offloads() const { return net_bit(VIRTIO_NET_F_GUEST_CSUM); }

NetPort::Sent StreamPort::send(std::span<NetFrame> frames) {
  Sent sent{.taken = 0, .failed = 0, .state = flush()};
  for (NetFrame& frame : frames) {
    LETHE_ASSERT(frame.bytes <= kStreamFrameBytesMax && frame.vectors.size() <= IOV_MAX);
    const uint32_t prefix = htonl(frame.bytes);
    // The header is of no use here: its room takes the length.
    std::memcpy(&frame.header, &prefix, sizeof prefix);
    frame.vectors[0] = {.iov_base = &frame.header, .iov_len = sizeof prefix};
  }
  while (sent.state == NetIoState::kDone && sent.taken < frames.size()) {
    const Group group = next_group(frames.subspan(sent.taken));
    msghdr message{};
    message.msg_iov = frames[sent.taken].vectors.data();
    message.msg_iovlen = group.vectors;
    const ssize_t result = ::sendmsg(x_socket.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (result < 0) {
      if (errno == EINTR) continue;
      sent.state = state_of(errno);
      return sent;
    }
    auto left = static_cast<uint64_t>(result);
    for (; left > 0; ++sent.taken) {
      const NetFrame& frame = frames[sent.taken];
      const uint64_t whole = frame.bytes + kStreamPrefixBytes;
      if (left < whole) keep_rest(frame, left);
      left -= std::min(left, whole);
    }
    if (static_cast<uint64_t>(result) < group.bytes) sent.state = flush();
  }
  return sent;
}

// The frame is on its way: what is left of it goes before anything else.
void StreamPort::keep_rest(const NetFrame& frame, uint64_t sent) {
  x_unsent.clear();
  x_unsent_at = 0;
  for (const iovec& vector : frame.vectors) {
    if (sent >= vector.iov_len) {
      sent -= vector.iov_len;
      continue;
    }
    // SAFETY: within the vector.
    const auto* const from = static_cast<const uint8_t*>(vector.iov_base);
    x_unsent.insert(x_unsent.end(), from + sent, from + vector.iov_len);
    sent = 0;
  }
}

NetIoState StreamPort::flush() {
  while (unsent()) {
    const ssize_t result = ::send(x_socket.get(), x_unsent.data() + x_unsent_at,
                                  x_unsent.size() - x_unsent_at, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (result < 0 && errno == EINTR) continue;
    if (result < 0) return state_of(errno);
    x_unsent_at += static_cast<size_t>(result);
  }
  return NetIoState::kDone;
}

NetIoState StreamPort::read(std::span<iovec> vectors, size_t& bytes) {
  msghdr message{};
  message.msg_iov = vectors.data();
  message.msg_iovlen = vectors.size();
  for (;;) {
    const ssize_t result = ::recvmsg(x_socket.get(), &message, MSG_DONTWAIT);
    if (result < 0 && errno == EINTR) continue;
    if (result < 0) return state_of(errno);
    if (result == 0) return NetIoState::kLost;  // the other end is closed
    bytes = static_cast<size_t>(result);
    return NetIoState::kDone;
  }
}

// Reads until at least `wanted` bytes (at most kAheadBytes) are there.
NetIoState StreamPort::fill_ahead(size_t wanted) {
  if (x_begin == x_end) x_begin = x_end = 0;
  if (x_begin + wanted > kAheadBytes) {
    std::memmove(x_ahead.get(), x_ahead.get() + x_begin, ahead());
    x_end = ahead();
    x_begin = 0;
  }
  while (ahead() < wanted) {
    // After a large frame, another one may come: no more of it than its length is read here.
    const size_t room = x_length >= kLargeFrame ? wanted - ahead() : kAheadBytes - x_end;
    iovec vector{.iov_base = x_ahead.get() + x_end, .iov_len = room};
    size_t bytes = 0;
    const NetIoState state = read({&vector, 1}, bytes);
    if (state != NetIoState::kDone) return state;
    x_end += bytes;
  }
  return NetIoState::kDone;
}

NetIoState StreamPort::drop_skipped() {
  while (x_skip_bytes > 0) {
    if (ahead() == 0) {
      const NetIoState state = fill_ahead(1);
      if (state != NetIoState::kDone) return state;
    }
    const size_t piece = std::min<uint64_t>(ahead(), x_skip_bytes);
    x_begin += piece;
    x_skip_bytes -= piece;
  }
  return NetIoState::kDone;
}

NetPort::Next StreamPort::next() {
  for (unsigned empty = 0; !x_known; ++empty) {
    // Nor is one that sends nothing but frames of no bytes, which would keep us here.
    if (empty > kEmptyFramesMax) return {.state = NetIoState::kLost, .bytes = 0};
    NetIoState state = drop_skipped();
    if (state == NetIoState::kDone) state = fill_ahead(kStreamPrefixBytes);
    if (state != NetIoState::kDone) return {.state = state, .bytes = 0};
    uint32_t prefix = 0;
    std::memcpy(&prefix, x_ahead.get() + x_begin, sizeof prefix);
    const uint32_t length = ntohl(prefix);
    // Who sends such a length is not in step with us any more, and never will be again.
    if (length > kStreamFrameBytesMax) return {.state = NetIoState::kLost, .bytes = 0};
    x_begin += kStreamPrefixBytes;
    x_length = length;
    x_done = 0;
    x_known = length > 0;
  }
  return {.state = NetIoState::kDone, .bytes = x_length};
}

// Copies of what was read ahead into the room, from byte `offset` on; at most `bytes`.
uint32_t StreamPort::take_ahead(std::span<const iovec> room, uint32_t offset, uint32_t bytes) {
  uint32_t left = static_cast<uint32_t>(std::min<size_t>(ahead(), bytes));
  const uint32_t taken = left;
  for (const iovec& vector : room) {
    if (left == 0) break;
    if (offset >= vector.iov_len) {
      offset -= static_cast<uint32_t>(vector.iov_len);
      continue;
    }
    const auto piece = static_cast<uint32_t>(std::min<size_t>(vector.iov_len - offset, left));
    // SAFETY: within the vector and within what was read.
    std::memcpy(static_cast<uint8_t*>(vector.iov_base) + offset, x_ahead.get() + x_begin, piece);
    x_begin += piece;
    left -= piece;
    offset = 0;
  }
  LETHE_ASSERT(left == 0);
  return taken;
}

NetPort::Received StreamPort::receive(std::span<const iovec> room) {
  LETHE_ASSERT(x_known);
  for (;;) {
    if (ahead() > 0) x_done += take_ahead(room, x_done, x_length - x_done);
    if (x_done == x_length) break;
    // The rest of the frame, and then the next one's length, or small ones whole.
    x_begin = x_end = 0;
    x_vectors.clear();
    const uint32_t left = x_length - x_done;
    append_part(x_vectors, room, x_done, left);
    x_vectors.push_back({.iov_base = x_ahead.get(),
                         .iov_len = x_length >= kLargeFrame ? kStreamPrefixBytes : kAheadBytes});
    size_t bytes = 0;
    const NetIoState state = read(x_vectors, bytes);
    if (state != NetIoState::kDone) return {.state = state, .bytes = 0, .truncated = false};
    x_done += static_cast<uint32_t>(std::min<size_t>(bytes, left));
    x_end = bytes - std::min<size_t>(bytes, left);
  }
  x_known = false;
  return {.state = NetIoState::kDone, .bytes = x_length, .truncated = false};
}

void StreamPort::put_back(std::span<const iovec> room) {
  // receive() has found no more than what it put there.
  LETHE_ASSERT(x_known && ahead() == 0 && x_done <= kAheadBytes);
  x_vectors.clear();
  append_part(x_vectors, room, 0, x_done);
  x_begin = x_end = 0;
  for (const iovec& vector : x_vectors) {
    std::memcpy(x_ahead.get() + x_end, vector.iov_base, vector.iov_len);
    x_end += vector.iov_len;
  }
  x_done = 0;
}

NetIoState StreamPort::skip() {
  if (!x_known) {
    const Next frame = next();
    if (frame.state != NetIoState::kDone) return frame.state;
  }
  x_skip_bytes = x_length - x_done;
  x_known = false;
  return NetIoState::kDone;
}

}  // namespace lethe
