#include "devices/virtio/vsock/fake_vsock_driver.h"

#include <algorithm>
#include <array>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr uint64_t kTxBytes = 4 << 20;

}  // namespace

FakeVsockDriver::FakeVsockDriver(const GuestMemory& memory, VirtioDevice& device, Options options)
    : x_memory(memory), x_options(options), x_transport(memory, device) {}

void FakeVsockDriver::start() {
  x_transport.start(~uint64_t{0}, x_options.queue_size);
  GuestHeap& heap = x_transport.heap();
  if (x_rx.empty()) {
    x_tx = heap.alloc(kTxBytes, 4096);
    x_event = heap.alloc(64);
    for (uint16_t i = 0; i < x_options.rx_buffers; ++i) {
      RxBuffer buffer{.address = heap.alloc(kHeader + x_options.rx_bytes, 64), .pieces = {}};
      std::vector<uint32_t> sizes{kHeader + x_options.rx_bytes};
      if (x_options.rx_split) sizes = {1, 40, 10, x_options.rx_bytes + kHeader - 51};
      uint64_t at = buffer.address.value;
      for (const uint32_t size : sizes) {
        buffer.pieces.push_back({GuestAddr{at}, size, true});
        at += size;
      }
      x_rx.push_back(std::move(buffer));
    }
  }
  give_all();
}

void FakeVsockDriver::restart_queues() {
  for (uint16_t i = 0; i < kVsockQueues; ++i) x_transport.restart_queue(i);
  give_all();
}

void FakeVsockDriver::give_all() {
  x_rx_free.clear();
  x_rx_by_head.clear();
  x_rx_given = 0;
  for (size_t i = 0; i < x_rx.size(); ++i) x_rx_free.push_back(i);
  refill();
  give_event_buffer();
}

void FakeVsockDriver::reset() {
  x_transport.reset();
  x_received.clear();
}

void FakeVsockDriver::refill() {
  x_rx_held = false;
  FakeDriver& driver = x_transport.driver(kVsockRx);
  bool added = false;
  while (!x_rx_free.empty()) {
    const auto head = driver.prepare(x_rx[x_rx_free.back()].pieces, FakeDriver::Table::kIndirect);
    if (!head) break;
    x_rx_by_head[*head] = x_rx_free.back();
    x_rx_free.pop_back();
    ++x_rx_given;
    added = true;
  }
  if (!added) return;
  driver.publish();
  x_transport.kick_if_wanted(kVsockRx);
}

void FakeVsockDriver::give_event_buffer(uint32_t bytes) {
  const std::array<FakeBuffer, 1> buffer{{{x_event, bytes, true}}};
  LETHE_ASSERT(x_transport.driver(kVsockEvent).add(buffer));
  x_transport.kick_if_wanted(kVsockEvent);
}

std::optional<uint32_t> FakeVsockDriver::wait_event(std::chrono::milliseconds patience) {
  const auto used = x_transport.driver(kVsockEvent)
                        .wait_used(x_transport.interrupt(kVsockEvent), deadline_in(patience));
  if (!used || used->written != sizeof(virtio_vsock_event)) return std::nullopt;
  return x_memory.load<virtio_vsock_event>(x_event)->id;
}

virtio_vsock_hdr FakeVsockDriver::header(uint16_t op, VsockPorts ports) const {
  return {.src_cid = kCid,
          .dst_cid = kVsockHostCid,
          .src_port = ports.guest,
          .dst_port = ports.host,
          .len = 0,
          .type = VIRTIO_VSOCK_TYPE_STREAM,
          .op = op,
          .flags = 0,
          .buf_alloc = x_options.buf_alloc,
          .fwd_cnt = 0};
}

bool FakeVsockDriver::send(const virtio_vsock_hdr& header, std::string_view payload,
                           std::chrono::milliseconds patience) {
  std::vector<uint8_t> bytes(kHeader + payload.size());
  std::memcpy(bytes.data(), &header, kHeader);
  std::copy(payload.begin(), payload.end(), bytes.begin() + kHeader);
  const std::array<uint32_t, 2> sizes{kHeader, static_cast<uint32_t>(payload.size())};
  return send_raw(bytes, {sizes.data(), payload.empty() ? size_t{1} : size_t{2}}, patience);
}

bool FakeVsockDriver::send(uint16_t op, VsockPorts ports, uint32_t flags) {
  virtio_vsock_hdr packet = header(op, ports);
  packet.flags = flags;
  return send(packet);
}

bool FakeVsockDriver::send_data(VsockPorts ports, std::string_view payload) {
  virtio_vsock_hdr packet = header(VIRTIO_VSOCK_OP_RW, ports);
  packet.len = static_cast<uint32_t>(payload.size());
  return send(packet, payload);
}

bool FakeVsockDriver::send_raw(std::span<const uint8_t> bytes, std::span<const uint32_t> sizes,
                               std::chrono::milliseconds patience) {
  LETHE_ASSERT(bytes.size() <= kTxBytes && x_memory.write(x_tx, bytes));
  std::vector<FakeBuffer> buffers;
  uint64_t at = x_tx.value;
  for (const uint32_t size : sizes) {
    buffers.push_back({GuestAddr{at}, size, false});
    at += size;
  }
  FakeDriver& driver = x_transport.driver(kVsockTx);
  const auto head = driver.add(buffers, FakeDriver::Table::kIndirect);
  if (!head) return false;
  x_transport.kick_if_wanted(kVsockTx);
  if (patience.count() == 0) return true;
  const Deadline deadline = deadline_in(patience);
  for (;;) {
    const auto used = driver.wait_used(x_transport.interrupt(kVsockTx), deadline);
    if (!used) return false;
    if (used->head == *head) return true;
  }
}

void FakeVsockDriver::take_used(uint16_t head, uint32_t written) {
  const auto found = x_rx_by_head.find(head);
  LETHE_ASSERT(found != x_rx_by_head.end());
  const RxBuffer& buffer = x_rx[found->second];
  if (written >= kHeader) {
    FakeVsockPacket packet;
    packet.header = *x_memory.load<virtio_vsock_hdr>(buffer.address);
    packet.payload.resize(written - kHeader);
    // SAFETY: the string's characters, as bytes.
    LETHE_ASSERT(
        x_memory.read(GuestAddr{buffer.address.value + kHeader},
                      {reinterpret_cast<uint8_t*>(packet.payload.data()), packet.payload.size()}));
    x_received.push_back(std::move(packet));
  }
  x_rx_free.push_back(found->second);
  x_rx_by_head.erase(found);
  --x_rx_given;
}

std::optional<FakeVsockPacket> FakeVsockDriver::receive(std::chrono::milliseconds patience) {
  const Deadline deadline = deadline_in(patience);
  FakeDriver& driver = x_transport.driver(kVsockRx);
  while (x_received.empty()) {
    const auto used = driver.wait_used(x_transport.interrupt(kVsockRx), deadline);
    if (!used) return std::nullopt;
    take_used(used->head, used->written);
    if (!x_rx_held) refill();
  }
  FakeVsockPacket packet = std::move(x_received.front());
  x_received.pop_front();
  return packet;
}

std::optional<FakeVsockPacket> FakeVsockDriver::receive_content(
    std::chrono::milliseconds patience) {
  for (;;) {
    auto packet = receive(patience);
    if (!packet || (packet->header.op != VIRTIO_VSOCK_OP_CREDIT_UPDATE &&
                    packet->header.op != VIRTIO_VSOCK_OP_CREDIT_REQUEST))
      return packet;
  }
}

std::vector<FakeVsockPacket> FakeVsockDriver::drain() {
  // A packet of an unknown stream, which is answered by a RST with the same ports.
  constexpr VsockPorts kNobody{.host = 0xffff'0001, .guest = 0xffff'0002};
  std::vector<FakeVsockPacket> before;
  LETHE_ASSERT(send(VIRTIO_VSOCK_OP_CREDIT_UPDATE, kNobody));
  while (auto packet = receive()) {
    if (packet->header.op == VIRTIO_VSOCK_OP_RST && packet->header.src_port == kNobody.host) break;
    before.push_back(std::move(*packet));
  }
  return before;
}

}  // namespace lethe
