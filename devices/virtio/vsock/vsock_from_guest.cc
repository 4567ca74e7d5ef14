// What a packet of the guest's does.
#include <sys/socket.h>

#include <algorithm>
#include <array>

#include "base/log.h"
#include "devices/virtio/vsock/vsock_io.h"

namespace lethe {
namespace {

constexpr size_t kSlicesMax = 64;  // of a packet, that one system call writes

// The slices of a chain's readable part from byte `from` on, as far as `bytes`; returns how many
// bytes they are, which is less if they are many.
struct Payload {
  std::array<iovec, kSlicesMax> slices;
  size_t count = 0;
  size_t bytes = 0;
};
void cut(const Chain& chain, uint64_t from, uint64_t bytes, Payload& to) {
  for (const IoSlice& slice : chain.readable()) {
    if (to.count == kSlicesMax || to.bytes == bytes) return;
    if (from >= slice.size) {
      from -= slice.size;
      continue;
    }
    const size_t size = std::min<uint64_t>(slice.size - from, bytes - to.bytes);
    to.slices[to.count++] = {.iov_base = slice.data + from, .iov_len = size};
    to.bytes += size;
    from = 0;
  }
}

}  // namespace

void VsockIo::from_guest(const Chain& chain) {
  virtio_vsock_hdr header;
  if (!chain.copy_front(header)) {
    ++x_counters.malformed;
    LETHE_LOG_LIMITED(LogModule::kVsock, "a packet of the guest's is shorter than its header");
    return;
  }
  if (header.src_cid != x_options.cid || header.dst_cid != kVsockHostCid) {
    ++x_counters.malformed;
    LETHE_LOG_LIMITED(LogModule::kVsock, "a packet from CID {} to {}", uint64_t{header.src_cid},
                      uint64_t{header.dst_cid});
    return;
  }
  const VsockPorts ports{.host = header.dst_port, .guest = header.src_port};
  if (header.type != VIRTIO_VSOCK_TYPE_STREAM) {
    ++x_counters.malformed;
    // 5.10.6.4.2: a RST is the answer to a type that is not known.
    if (header.op != VIRTIO_VSOCK_OP_RST) answer_reset(ports, header.type);
    return;
  }
  // Only data has payload, and that must be in the chain.
  const uint64_t payload_max =
      header.op == VIRTIO_VSOCK_OP_RW ? chain.readable_bytes() - sizeof header : 0;
  if (header.len > payload_max || header.op == VIRTIO_VSOCK_OP_INVALID ||
      header.op > VIRTIO_VSOCK_OP_CREDIT_REQUEST) {
    ++x_counters.malformed;
    LETHE_LOG_LIMITED(LogModule::kVsock, "a packet of the guest's with op {} and length {}",
                      uint16_t{header.op}, uint32_t{header.len});
    // What it should have brought is missing: the stream can't go on.
    if (VsockStream* const stream = x_table.find(ports)) reset(*stream);
    return;
  }
  on_packet(chain, header);
}

void VsockIo::on_packet(const Chain& chain, const virtio_vsock_hdr& header) {
  if (header.op == VIRTIO_VSOCK_OP_REQUEST) return on_request(header);
  const VsockPorts ports{.host = header.dst_port, .guest = header.src_port};
  VsockStream* const stream = x_table.find(ports);
  if (stream == nullptr || !stream->known_to_guest) {
    ++x_counters.stray;
    if (header.op != VIRTIO_VSOCK_OP_RST) answer_reset(ports);  // and never a RST for a RST
    return;
  }
  if (header.op == VIRTIO_VSOCK_OP_RST) {
    if (stream->state == VsockStream::State::kRequested) ++x_counters.refused;
    return drop(*stream);
  }
  if (!stream->credit.peer_tells(header.buf_alloc, header.fwd_cnt)) {
    ++x_counters.credit_broken;
    LETHE_LOG_LIMITED(LogModule::kVsock, "the guest counts more bytes than it was sent");
    return reset(*stream);
  }
  stream->asked_for_credit = false;
  if (header.op == VIRTIO_VSOCK_OP_RESPONSE) return on_response(*stream);
  if (stream->state != VsockStream::State::kOpen) {
    ++x_counters.stray;
    return reset(*stream);
  }
  if (header.op == VIRTIO_VSOCK_OP_SHUTDOWN) return on_shutdown(*stream, header.flags);
  if (header.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST) tell(*stream, VsockStream::kCreditUpdate);
  if (header.op == VIRTIO_VSOCK_OP_RW) return on_data(*stream, chain, header.len);
  schedule_if_readable(*stream);
}

void VsockIo::on_request(const virtio_vsock_hdr& header) {
  const VsockPorts ports{.host = header.dst_port, .guest = header.src_port};
  if (VsockStream* const stale = x_table.find(ports)) {
    // The guest does not know of a stream that we have: neither end is of use now.
    ++x_counters.stray;
    return reset(*stale);
  }
  // A RST that still waits was for the socket that had these ports before.
  forget_resets(ports);
  VsockStream* const stream = x_table.add(VsockStream::State::kConnecting);
  if (stream == nullptr) {
    ++x_counters.refused;
    LETHE_LOG_LIMITED(LogModule::kVsock, "{} streams are open: another one is refused",
                      x_options.limits.streams_max);
    return answer_reset(ports);
  }
  ++x_counters.streams;
  x_table.bind(*stream, ports);
  stream->known_to_guest = true;
  if (!stream->credit.peer_tells(header.buf_alloc, header.fwd_cnt)) {
    ++x_counters.credit_broken;
    return reset(*stream);
  }
  set_deadline(*stream, x_options.limits.connect_max);
  connect_host(*stream);
}

void VsockIo::on_response(VsockStream& stream) {
  if (stream.state != VsockStream::State::kRequested) {
    ++x_counters.stray;
    return reset(stream);
  }
  const std::string ok = fmt::format("OK {}\n", stream.ports.host);
  // The socket is new: there is room for a line.
  if (::send(stream.socket.get(), ok.data(), ok.size(), MSG_NOSIGNAL | MSG_DONTWAIT) !=
      static_cast<ssize_t>(ok.size()))
    return reset(stream);
  stream.state = VsockStream::State::kOpen;
  stream.deadline.reset();
  ++x_counters.from_host;
  schedule_if_readable(stream);
}

void VsockIo::on_data(VsockStream& stream, const Chain& chain, uint32_t bytes) {
  if ((stream.shut_by_guest & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0) {
    ++x_counters.stray;
    return reset(stream);
  }
  if (!stream.credit.receive(bytes)) {
    ++x_counters.credit_broken;
    LETHE_LOG_LIMITED(LogModule::kVsock, "the guest sends {} bytes, and has no credit for them",
                      bytes);
    return reset(stream);
  }
  if ((stream.shut_by_host & VIRTIO_VSOCK_SHUTDOWN_RCV) != 0) {
    // On its way when the host closed: nobody will read it.
    stream.credit.forward(bytes);
  } else if (stream.buffered()) {
    keep(stream, chain, 0, bytes);
  } else {
    const size_t written = write_through(stream, chain, bytes);
    if (written < bytes) keep(stream, chain, written, bytes - written);
  }
  if (stream.credit.update_due()) tell(stream, VsockStream::kCreditUpdate);
  schedule_if_readable(stream);
}

// Writes from the guest's memory as much as the socket takes.
size_t VsockIo::write_through(VsockStream& stream, const Chain& chain, uint32_t bytes) {
  size_t written = 0;
  while (written < bytes) {
    Payload payload;
    cut(chain, sizeof(virtio_vsock_hdr) + written, bytes - written, payload);
    msghdr message{};
    message.msg_iov = payload.slices.data();
    message.msg_iovlen = payload.count;
    const ssize_t sent = ::sendmsg(stream.socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM) {
      host_gone(stream);
      stream.credit.forward(static_cast<uint32_t>(bytes - written));
      return bytes;
    }
    const size_t count = sent < 0 ? 0 : static_cast<size_t>(sent);
    written += count;
    stream.credit.forward(static_cast<uint32_t>(count));
    x_counters.bytes_to_host += count;
    if (count < payload.bytes) break;
  }
  return written;
}

// Copies what the socket did not take. There is room: the guest had credit for it.
void VsockIo::keep(VsockStream& stream, const Chain& chain, uint64_t from, uint64_t bytes) {
  if (!stream.buffer) stream.buffer = std::make_unique<ByteRing<kVsockBufferBytes>>();
  from += sizeof(virtio_vsock_hdr);
  for (const IoSlice& slice : chain.readable()) {
    if (from >= slice.size) {
      from -= slice.size;
      continue;
    }
    const size_t size = std::min<uint64_t>(slice.size - from, bytes);
    const size_t kept = stream.buffer->push({slice.data + from, size});
    LETHE_ASSERT(kept == size);
    bytes -= size;
    from = 0;
    if (bytes == 0) break;
  }
  want_writable(stream, true);
}

void VsockIo::on_shutdown(VsockStream& stream, uint32_t flags) {
  constexpr uint8_t kBoth = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;
  const uint8_t before = stream.shut_by_guest;
  stream.shut_by_guest |= static_cast<uint8_t>(flags & kBoth);  // the other bits mean nothing
  if (stream.shut_by_guest == kBoth) return finish(stream);
  const uint8_t now = stream.shut_by_guest & ~before;
  if ((now & VIRTIO_VSOCK_SHUTDOWN_RCV) != 0) (void)::shutdown(stream.socket.get(), SHUT_RD);
  // With something buffered, flush() does this.
  if ((now & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0 && !stream.buffered())
    (void)::shutdown(stream.socket.get(), SHUT_WR);
}

}  // namespace lethe
