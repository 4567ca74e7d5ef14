// Packets for the guest.
#include <sys/uio.h>

#include <algorithm>
#include <array>

#include "base/assert.h"
#include "devices/virtio/vsock/vsock_io.h"

namespace lethe {
namespace {

constexpr unsigned kServedMax = 16;      // streams, before packets of the guest's have their turn
constexpr size_t kReadMax = 256 * 1024;  // bytes of one turn of a stream
constexpr uint32_t kHeader = sizeof(virtio_vsock_hdr);

}  // namespace

// Gives the guest what is waiting for it; whether that was something.
bool VsockIo::give() {
  x_starved = false;
  if (!x_queues[kVsockRx].usable()) return false;
  bool gave = false;
  for (unsigned i = 0; i < kServedMax; ++i) {
    if (x_reset_count > 0) {
      x_starved = !send_reset();
      if (x_starved) break;
      gave = true;
      continue;
    }
    VsockStream* const stream = x_schedule.front();
    if (stream == nullptr) break;
    const Served served = serve(*stream);
    if (served == Served::kStarved) {
      x_starved = true;
      break;
    }
    gave = true;
    if (stream != x_schedule.front()) continue;  // it is no more
    x_schedule.pop_front();
    if (served == Served::kMore || stream->due != 0) x_schedule.add(*stream);
  }
  return gave;
}

VsockIo::Served VsockIo::serve(VsockStream& stream) {
  if (stream.due != 0) {
    const Served served = send_due(stream);
    if (served != Served::kDone) return served;
  }
  if (!can_read(stream)) return Served::kDone;
  return send_data(stream);
}

// Sends the first of the packets without payload; kDone if it was the last one.
VsockIo::Served VsockIo::send_due(VsockStream& stream) {
  if (stage(1) == 0) return Served::kStarved;
  const uint8_t due = stream.due & -stream.due;
  stream.due &= ~due;
  switch (due) {
    case VsockStream::kRequest:
      stream.known_to_guest = true;
      send_staged(header_for(stream, VIRTIO_VSOCK_OP_REQUEST));
      break;
    case VsockStream::kResponse:
      send_staged(header_for(stream, VIRTIO_VSOCK_OP_RESPONSE));
      break;
    case VsockStream::kCreditUpdate:
      send_staged(header_for(stream, VIRTIO_VSOCK_OP_CREDIT_UPDATE));
      break;
    case VsockStream::kCreditRequest:
      send_staged(header_for(stream, VIRTIO_VSOCK_OP_CREDIT_REQUEST));
      break;
    default: {
      virtio_vsock_hdr header = header_for(stream, VIRTIO_VSOCK_OP_SHUTDOWN);
      header.flags = stream.shut_by_host;
      send_staged(header);
      // Linux answers with a RST when it has nothing left to read.
      if (stream.shut_by_host == (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND))
        set_deadline(stream, x_options.limits.close_max);
      break;
    }
  }
  return stream.due != 0 ? Served::kMore : Served::kDone;
}

// The payload's places in what is staged, as far as `room_max` bytes; how many buffers that takes.
size_t VsockIo::lay_out(size_t room_max, Layout& to) const {
  size_t chains = 0;
  for (; chains < x_staged_count && to.room < room_max; ++chains) {
    const size_t packet_max = std::min<size_t>(room_max - to.room, kVsockPacketBytesMax);
    size_t skip = kHeader;
    size_t taken = 0;
    for (const IoSlice& slice : x_staged[chains]->writable()) {
      if (to.slice_count == kSlicesMax || taken == packet_max) break;
      if (skip >= slice.size) {
        skip -= slice.size;
        continue;
      }
      const size_t size = std::min(slice.size - skip, packet_max - taken);
      to.slices[to.slice_count++] = {.iov_base = slice.data + skip, .iov_len = size};
      taken += size;
      skip = 0;
    }
    if (taken == 0) break;
    to.rooms[chains] = static_cast<uint32_t>(taken);
    to.room += taken;
  }
  return chains;
}

// Reads from the socket straight into as many of the guest's buffers as there is credit for. There
// is no room for descriptors that a host program sends with its bytes: the kernel closes them
// (unix(7)).
VsockIo::Served VsockIo::send_data(VsockStream& stream) {
  const size_t room_max = std::min<size_t>(stream.credit.available(), kReadMax);
  if (room_max == 0) {
    if (std::exchange(stream.asked_for_credit, true))
      return Served::kDone;  // the next packet of the guest's schedules it
    stream.due |= VsockStream::kCreditRequest;
    return Served::kMore;
  }
  if (stage(kStagedMax) == 0) return Served::kStarved;
  Layout layout;
  const size_t chains = lay_out(room_max, layout);
  if (chains == 0) {
    // The first one holds a header and nothing else.
    ++x_counters.small_buffers;
    unstage(1);
    return Served::kMore;
  }
  const ssize_t got =
      ::readv(stream.socket.get(), layout.slices.data(), static_cast<int>(layout.slice_count));
  if (got < 0 && errno == EINTR) return Served::kMore;
  if (got < 0 && errno == EAGAIN) {
    stream.readable = false;
    return Served::kDone;
  }
  if (got < 0) {  // ECONNRESET: it closed without having read everything
    reset(stream);
    return Served::kDone;
  }
  if (got == 0) {
    host_ended(stream);
    return Served::kMore;
  }
  // Less than was asked for does not mean that there is no more, and the event for what is left has
  // been: a read ends behind a message that carried descriptors, and before urgent data. Only
  // EAGAIN says so.
  send_filled(stream, layout, static_cast<size_t>(got));
  return Served::kMore;
}

// Sends off what a read has put into staged buffers.
void VsockIo::send_filled(VsockStream& stream, const Layout& layout, size_t bytes) {
  x_counters.bytes_to_guest += bytes;
  stream.due &= ~VsockStream::kCreditUpdate;  // these packets tell it
  size_t used = 0;
  for (; bytes > 0; ++used) {
    const auto payload = static_cast<uint32_t>(std::min<size_t>(bytes, layout.rooms[used]));
    virtio_vsock_hdr header = header_for(stream, VIRTIO_VSOCK_OP_RW);
    header.len = payload;
    stream.credit.sent(payload);
    send_in(*x_staged[used], header);
    bytes -= payload;
  }
  forget_staged(used);
}

bool VsockIo::can_read(const VsockStream& stream) const {
  return stream.state == VsockStream::State::kOpen && stream.readable &&
         (stream.shut_by_host & VIRTIO_VSOCK_SHUTDOWN_SEND) == 0 &&
         (stream.shut_by_guest & VIRTIO_VSOCK_SHUTDOWN_RCV) == 0;
}

// Takes buffers of the guest's until there are `count`, or no more; returns how many there are.
size_t VsockIo::stage(size_t count) {
  LiveQueue& live = x_queues[kVsockRx];
  if (x_staged_count >= count) return x_staged_count;
  const GuestMemory::MapGuard map = live.queue->map();
  for (unsigned tries = 0; x_staged_count < count && tries < 2 * kStagedMax; ++tries) {
    auto chain = live.queue->pop(*map);
    if (!chain) break;
    if (chain->writable_bytes() < kHeader) {
      ++x_counters.small_buffers;
      chain->complete(0);
      continue;
    }
    x_staged[x_staged_count++] = std::move(chain);
  }
  report_if_broken(live);
  return x_staged_count;
}

// Gives the first ones back unused.
void VsockIo::unstage(size_t count) {
  for (size_t i = 0; i < count; ++i) x_staged[i]->complete(0);
  forget_staged(count);
}

void VsockIo::forget_staged(size_t count) {
  std::move(x_staged.begin() + count, x_staged.begin() + x_staged_count, x_staged.begin());
  for (size_t i = x_staged_count - count; i < x_staged_count; ++i) x_staged[i].reset();
  x_staged_count -= count;
}

// A packet; what `header` says of its payload is behind the header already.
void VsockIo::send_in(Chain& chain, const virtio_vsock_hdr& header) {
  // SAFETY: the header's bytes.
  (void)chain.copy_to_writable(0, {reinterpret_cast<const uint8_t*>(&header), sizeof header});
  chain.complete(kHeader + header.len);
}

void VsockIo::send_staged(const virtio_vsock_hdr& header) {
  send_in(*x_staged[0], header);
  forget_staged(1);
}

virtio_vsock_hdr VsockIo::header_for(VsockStream& stream, uint16_t op) {
  return {.src_cid = kVsockHostCid,
          .dst_cid = x_options.cid,
          .src_port = stream.ports.host,
          .dst_port = stream.ports.guest,
          .len = 0,
          .type = VIRTIO_VSOCK_TYPE_STREAM,
          .op = op,
          .flags = 0,
          .buf_alloc = stream.credit.buffer(),
          .fwd_cnt = stream.credit.tell()};
}

bool VsockIo::send_reset() {
  if (stage(1) == 0) return false;
  const Reset& reset = x_resets[x_reset_first];
  send_staged({.src_cid = kVsockHostCid,
               .dst_cid = x_options.cid,
               .src_port = reset.ports.host,
               .dst_port = reset.ports.guest,
               .len = 0,
               .type = reset.type,
               .op = VIRTIO_VSOCK_OP_RST,
               .flags = 0,
               .buf_alloc = 0,
               .fwd_cnt = 0});
  x_reset_first = (x_reset_first + 1) % x_resets.size();
  --x_reset_count;
  ++x_counters.resets_sent;
  return true;
}

void VsockIo::answer_reset(VsockPorts ports, uint16_t type) {
  if (x_reset_count == x_resets.size()) {
    ++x_counters.resets_lost;
    return;
  }
  x_resets[(x_reset_first + x_reset_count++) % x_resets.size()] = {.ports = ports, .type = type};
}

void VsockIo::forget_resets(VsockPorts ports) {
  size_t kept = 0;
  for (size_t i = 0; i < x_reset_count; ++i) {
    const Reset reset = x_resets[(x_reset_first + i) % x_resets.size()];
    if (reset.ports == ports && reset.type == VIRTIO_VSOCK_TYPE_STREAM) continue;
    x_resets[(x_reset_first + kept++) % x_resets.size()] = reset;
  }
  x_reset_count = kept;
}

void VsockIo::tell(VsockStream& stream, uint8_t due) {
  stream.due |= due;
  x_schedule.add(stream);
}

void VsockIo::schedule_if_readable(VsockStream& stream) {
  if (can_read(stream)) x_schedule.add(stream);
}

}  // namespace lethe
