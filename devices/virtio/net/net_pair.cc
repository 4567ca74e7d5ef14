#include "devices/virtio/net/net_pair.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "base/assert.h"
#include "base/log.h"

namespace lethe {
namespace {

constexpr uint32_t kHeaderBytes = sizeof(virtio_net_hdr_v1);
constexpr uint32_t kUsualMtu = 1500;
constexpr size_t kHeldAhead = 32;   // buffers taken from the ring together
constexpr size_t kHeldSlack = 128;  // used entries at the front of x_held before it is tidied

// The device's thread alone counts.
void add(std::atomic<uint64_t>& counter, uint64_t amount = 1) {
  counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}

iovec vector_of(const IoSlice& slice) { return {.iov_base = slice.data, .iov_len = slice.size}; }

// What is left of `slice` behind the first `skip` bytes of what it belongs to; `skip` goes on.
IoSlice behind(const IoSlice& slice, uint64_t& skip) {
  const auto cut = std::min<uint64_t>(skip, slice.size);
  skip -= cut;
  return {.data = slice.data + cut, .size = slice.size - cut};
}

}  // namespace

NetPair::NetPair(NetShared& shared)
    : x_shared(shared), x_tx_vectors(std::make_unique_for_overwrite<iovec[]>(kTxVectors)) {
  x_batch.reserve(kTxBatch);
  x_frames.reserve(kTxBatch);
}

void NetPair::set_port(NetPort* port) {
  drop_batch();  // it was for the old one
  x_port = port;
  x_receiving = false;
}

void NetPair::start_receive(std::unique_ptr<Queue> queue) {
  x_held.reserve(queue->size() + kHeldSlack);
  x_rx = std::move(queue);
  x_starved = x_rx_throttled = false;
}

void NetPair::start_send(std::unique_ptr<Queue> queue) {
  x_tx = std::move(queue);
  x_tx_empty = false;
}

void NetPair::stop_receive() {
  // The guest gets these buffers back: what of a frame is in them goes into the next ones.
  if (std::exchange(x_receiving, false) && x_port != nullptr) x_port->put_back(x_room);
  x_held.clear();
  x_first_held = x_held_bytes = x_held_vectors = 0;
  x_rx.reset();
}

void NetPair::stop_send() {
  // In a device that is being frozen, these come again.
  x_batch.clear();
  x_frames.clear();
  x_batch_sent = 0;
  x_tx.reset();
}

bool NetPair::want_kicks() {
  bool more = false;
  if (x_tx && x_tx_empty) more |= x_tx->enable_kicks();
  if (x_rx && x_starved) more |= x_rx->enable_kicks();
  return more;
}

bool NetPair::wants_writable() const {
  return x_port != nullptr && (x_port->unsent() || (x_tx && batch_left() > 0));
}

// True, and the queue gone, if the driver broke its rules.
bool NetPair::broken(std::unique_ptr<Queue>& queue) {
  if (!queue->broken()) return false;
  x_shared.host->needs_reset(queue->broken_reason());
  queue == x_rx ? stop_receive() : stop_send();
  return true;
}

NetPair::Turn NetPair::end_send(Turn turn) {
  if (x_tx) x_tx->interrupt_if_needed();
  return turn;
}

NetPair::Turn NetPair::send() {
  x_tx_empty = false;
  if (x_port != nullptr && x_port->unsent()) {
    const NetIoState state = x_port->flush();
    if (state != NetIoState::kDone) return state == NetIoState::kLost ? Turn::kLost : Turn::kIdle;
  }
  if (!x_tx) return Turn::kIdle;
  x_tx->disable_kicks();
  for (unsigned frames = 0; frames < kTurnFrames; frames += kTxBatch) {
    if (batch_left() == 0) {
      if (x_shared.limited && x_shared.tx.wait().count() > 0) return end_send(Turn::kThrottled);
      const bool popped = fill_batch();
      if (broken(x_tx)) return Turn::kIdle;
      x_tx_empty = !popped;
      if (x_tx_empty) return end_send(Turn::kIdle);
    }
    switch (send_batch()) {
      case NetIoState::kDone:
        x_tx->interrupt_if_needed();
        break;
      case NetIoState::kWouldBlock:
        return end_send(Turn::kIdle);
      case NetIoState::kLost:
        drop_batch();
        return end_send(Turn::kLost);
    }
  }
  return end_send(Turn::kMore);
}

// True if there was something in the ring.
bool NetPair::fill_batch() {
  x_batch.clear();
  x_frames.clear();
  x_batch_sent = x_tx_vectors_used = 0;
  const size_t batch_max = x_shared.limited ? 1 : kTxBatch;
  const uint64_t bytes_max = x_port == nullptr ? UINT64_MAX : x_port->batch_bytes();
  uint64_t bytes = 0;
  uint64_t last = 0;  // the next frame is likely as long
  const GuestMemory::MapGuard map = x_tx->map();
  size_t popped = 0;
  while (popped < batch_max && bytes + last <= bytes_max &&
         x_tx_vectors_used + 1 + x_tx->size() <= kTxVectors) {
    auto chain = x_tx->pop(*map);
    if (!chain) break;
    ++popped;
    last = chain->readable_bytes();
    bytes += last;
    add_to_batch(std::move(*chain));
  }
  return popped > 0;
}

// What is refused is completed at once: its frame is lost, as frames get lost on networks.
void NetPair::add_to_batch(Chain chain) {
  NetFrame& frame = x_frames.emplace_back();
  if (!take_frame(chain, frame)) return x_frames.pop_back();
  if (x_shared.limited) x_shared.tx.take(frame.bytes);
  x_batch.push_back(std::move(chain));
}

bool NetPair::take_frame(const Chain& chain, NetFrame& frame) {
  const uint64_t bytes = chain.readable_bytes();
  const char* wrong = nullptr;
  if (bytes < kHeaderBytes || !chain.copy_front(frame.header))
    wrong = "a chain shorter than virtio's header";
  else
    wrong = check_frame(frame.header, bytes - kHeaderBytes, x_shared.features,
                        x_port == nullptr ? kNetFrameBytesMax : x_port->frame_bytes_max());
  if (wrong == nullptr && chain.readable().size() >= kTxFrameVectors)
    wrong = "a frame in too many pieces";
  if (wrong != nullptr) {
    add(x_shared.counters.tx_refused);
    LETHE_LOG_LIMITED(LogModule::kNet, "frame refused: {}", wrong);
    return false;
  }
  if (!x_shared.link_up || x_port == nullptr) {
    add(x_shared.counters.tx_dropped);
    return false;
  }
  frame.bytes = static_cast<uint32_t>(bytes - kHeaderBytes);
  iovec* const first = x_tx_vectors.get() + x_tx_vectors_used;
  size_t count = 1;  // the port's
  uint64_t skip = kHeaderBytes;
  for (const IoSlice& slice : chain.readable()) {
    const IoSlice rest = behind(slice, skip);
    if (rest.size > 0) first[count++] = vector_of(rest);
  }
  x_tx_vectors_used += count;
  frame.vectors = {first, count};
  return true;
}

NetIoState NetPair::send_batch() {
  if (batch_left() == 0) return NetIoState::kDone;
  const std::span<NetFrame> left = std::span(x_frames).subspan(x_batch_sent);
  const NetPort::Sent sent = x_port->send(left);
  uint64_t bytes = 0;
  if (sent.taken > 0) x_worked = true;
  for (size_t i = 0; i < sent.taken; ++i) {
    bytes += left[i].bytes;
    x_batch[x_batch_sent++].complete(0);
  }
  add(x_shared.counters.tx_frames, sent.taken - sent.failed);
  add(x_shared.counters.tx_bytes, bytes);
  if (sent.failed > 0) add(x_shared.counters.tx_failed, sent.failed);
  return sent.state;
}

void NetPair::drop_batch() {
  if (batch_left() > 0) add(x_shared.counters.tx_dropped, batch_left());
  x_batch.clear();
  x_frames.clear();
  x_batch_sent = 0;
}

NetPair::Turn NetPair::end_receive(Turn turn) {
  if (x_rx) x_rx->interrupt_if_needed();
  return turn;
}

NetPair::Turn NetPair::receive() {
  x_starved = false;
  if (!x_rx || x_port == nullptr) return Turn::kIdle;
  x_rx->disable_kicks();
  for (unsigned frames = 0; frames < kTurnFrames; ++frames) {
    x_rx_throttled = x_shared.limited && x_shared.rx.wait().count() > 0;
    if (x_rx_throttled) return end_receive(Turn::kThrottled);
    if (const auto turn = receive_one()) return end_receive(*turn);
    if (frames % kTxBatch == kTxBatch - 1) x_rx->interrupt_if_needed();
  }
  return end_receive(Turn::kMore);
}

std::optional<NetPair::Turn> NetPair::drop_next(std::atomic<uint64_t>& counter) {
  x_receiving = false;
  switch (x_port->skip()) {
    case NetIoState::kDone:
      x_worked = true;
      add(counter);
      return std::nullopt;
    case NetIoState::kWouldBlock:
      return Turn::kIdle;
    case NetIoState::kLost:
      return Turn::kLost;
  }
  return Turn::kIdle;
}

std::optional<NetPair::Turn> NetPair::receive_one() {
  if (!x_shared.link_up) return drop_next(x_shared.counters.rx_dropped);
  const NetPort::Next next = x_port->next();
  if (next.state != NetIoState::kDone)
    return next.state == NetIoState::kLost ? Turn::kLost : Turn::kIdle;
  const uint64_t wanted = room_wanted(next.bytes);
  const Gathered gathered = gather(wanted);
  if (!x_rx) return Turn::kIdle;  // the driver broke its rules
  if (gathered == Gathered::kStarved) {
    x_starved = true;
    return Turn::kIdle;
  }
  // Where the frame's length is not known, what is there may do.
  if (gathered == Gathered::kTooSmall && next.bytes > 0)
    return drop_next(x_shared.counters.rx_too_large);
  if (!x_receiving) make_room(wanted);
  if (x_room.size() > kRoomVectors) {
    if (next.bytes > 0) return drop_next(x_shared.counters.rx_too_large);
    x_room.resize(kRoomVectors);  // cuts the frame if it needs more
  }
  const NetPort::Received received = x_port->receive(x_room);
  x_receiving = received.state == NetIoState::kWouldBlock && next.bytes > 0;
  if (received.state != NetIoState::kDone)
    return received.state == NetIoState::kLost ? Turn::kLost : Turn::kIdle;
  const uint64_t least = x_port->has_header() ? kHeaderBytes : 0;
  if (received.truncated || received.bytes < least)
    add(x_shared.counters.rx_too_large);
  else
    deliver(received.bytes);
  return std::nullopt;
}

// With the header. A frame of unknown length may be the longest the guest takes.
uint64_t NetPair::room_wanted(uint32_t frame_bytes) const {
  if (frame_bytes > 0) return uint64_t{frame_bytes} + kHeaderBytes;
  const bool large = has(VIRTIO_NET_F_GUEST_TSO4) || has(VIRTIO_NET_F_GUEST_TSO6);
  return kHeaderBytes +
         (large ? kNetFrameBytesMax
                : std::max(x_shared.mtu, kUsualMtu) + kEthernetHeaderBytes + kVlanTagBytes);
}

// Holds so many receive buffers that there is room for `wanted` bytes: one without MRG_RXBUF.
NetPair::Gathered NetPair::gather(uint64_t wanted) {
  if (x_held_bytes >= wanted) return Gathered::kEnough;
  const bool merges = has(VIRTIO_NET_F_MRG_RXBUF);
  const size_t most = merges ? SIZE_MAX : 1;
  const GuestMemory::MapGuard map = x_rx->map();
  while (x_held_bytes < wanted) {
    const size_t last = held() == 0 ? 0 : x_held.back().chain.writable().size();
    if (held() == most || x_held_vectors + last > kRoomVectors) return Gathered::kTooSmall;
    if (hold_one(*map)) continue;
    if (broken(x_rx)) return Gathered::kStarved;
    // The ring is empty, and has no place for another buffer like the last one: the driver has
    // given all it can.
    const bool all = held() >= x_rx->size() || (held() > 0 && x_held_vectors + last > x_rx->size());
    return all ? Gathered::kTooSmall : Gathered::kStarved;
  }
  // For the next frames, while we are here.
  while (merges && held() < kHeldAhead && hold_one(*map)) {
  }
  (void)broken(x_rx);
  return Gathered::kEnough;
}

// Looks at no more than a ring's worth: the guest may put refused buffers back at once.
bool NetPair::hold_one(const MemoryMap& map) {
  for (unsigned tries = 0; tries < x_rx->size(); ++tries) {
    auto chain = x_rx->pop(map);
    if (!chain) return false;
    const uint64_t bytes = chain->writable_bytes();
    if (bytes < kHeaderBytes || chain->writable().size() > kRoomVectors) {
      add(x_shared.counters.rx_refused);
      LETHE_LOG_LIMITED(LogModule::kNet, "receive buffer of {} bytes refused", bytes);
      continue;  // completed with nothing in it
    }
    x_held_bytes += bytes;
    x_held_vectors += chain->writable().size();
    x_held.push_back({.chain = std::move(*chain), .bytes = bytes});
    return true;
  }
  return false;
}

// Of what is held, enough for `wanted` bytes with the header.
void NetPair::make_room(uint64_t wanted) {
  x_room.clear();
  uint64_t skip = x_port->has_header() ? 0 : kHeaderBytes;
  uint64_t bytes = 0;
  for (size_t i = x_first_held; i < x_held.size(); ++i) {
    for (const IoSlice& slice : x_held[i].chain.writable()) {
      if (bytes >= wanted) return;
      bytes += slice.size;
      const IoSlice rest = behind(slice, skip);
      if (rest.size > 0) x_room.push_back(vector_of(rest));
    }
  }
}

// 5.1.6.4.1: the frame is in the first buffers held, `bytes` of it with the header if that came
// along.
void NetPair::deliver(uint64_t bytes) {
  const bool has_header = x_port->has_header();
  const uint64_t whole = bytes + (has_header ? 0 : kHeaderBytes);
  LETHE_ASSERT(whole >= kHeaderBytes && whole <= x_held_bytes);
  uint16_t buffers = 0;
  for (uint64_t room = 0; room < whole; ++buffers) room += x_held[x_first_held + buffers].bytes;
  virtio_net_hdr_v1 header{};
  header.num_buffers = buffers;
  // What comes without a header comes from this host, whose sums are good (5.1.6.4.1).
  if (has(VIRTIO_NET_F_GUEST_CSUM)) header.flags = VIRTIO_NET_HDR_F_DATA_VALID;
  const size_t from = has_header ? offsetof(virtio_net_hdr_v1, num_buffers) : 0;
  // SAFETY: the object's bytes.
  const std::span raw(reinterpret_cast<const uint8_t*>(&header), sizeof header);
  (void)x_held[x_first_held].chain.copy_to_writable(from, raw.subspan(from));
  uint64_t left = whole;
  for (uint16_t i = 0; i < buffers; ++i) {
    Held& buffer = x_held[x_first_held++];
    const uint64_t part = std::min(left, buffer.bytes);
    left -= part;
    x_held_bytes -= buffer.bytes;
    x_held_vectors -= buffer.chain.writable().size();
    buffer.chain.complete(static_cast<uint32_t>(part));
  }
  if (x_first_held == x_held.size() || x_first_held >= kHeldSlack) {
    x_held.erase(x_held.begin(), x_held.begin() + static_cast<ptrdiff_t>(x_first_held));
    x_first_held = 0;
  }
  x_worked = true;
  add(x_shared.counters.rx_frames);
  add(x_shared.counters.rx_bytes, whole - kHeaderBytes);
  if (x_shared.limited) x_shared.rx.take(whole - kHeaderBytes);
}

}  // namespace lethe
