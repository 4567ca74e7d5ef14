// What the network tests share: a guest with a card, and the process at the other end of its
// stream.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "base/test_util.h"
#include "devices/virtio/fake_transport.h"
#include "devices/virtio/net/net.h"
#include "devices/virtio/net/stream_port.h"

namespace lethe {

using Bytes = std::vector<uint8_t>;

// `size` bytes that depend on `seed`, as a frame.
inline Bytes make_frame(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// The other end of a stream.
class StreamPeer {
 public:
  // `send_bytes`: about what the device's end holds; 0: as usual.
  explicit StreamPeer(int send_bytes = 0) {
    int ends[2];
    LETHE_ASSERT(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    x_ours.reset(ends[0]);
    x_theirs.reset(ends[1]);
    if (send_bytes > 0)
      (void)::setsockopt(x_theirs.get(), SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
  }
  NetPorts ports() {
    NetPorts ports;
    ports.push_back(std::make_unique<StreamPort>(std::move(x_theirs)));
    return ports;
  }
  void send_raw(const Bytes& bytes) {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t sent =
          ::send(x_ours.get(), bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      ASSERT_GT(sent, 0) << errno_text(errno);
      done += static_cast<size_t>(sent);
    }
  }
  static Bytes wire(const Bytes& frame) {
    const uint32_t prefix = htonl(static_cast<uint32_t>(frame.size()));
    Bytes bytes(sizeof prefix);
    std::memcpy(bytes.data(), &prefix, sizeof prefix);
    bytes.insert(bytes.end(), frame.begin(), frame.end());
    return bytes;
  }
  void send(const Bytes& frame) { send_raw(wire(frame)); }
  // The next frame; nothing if none comes in time, or the stream has ended.
  std::optional<Bytes> receive(std::chrono::milliseconds patience = FakeTransport::kPatience) {
    uint32_t prefix = 0;
    Bytes head(sizeof prefix);
    if (!receive_exactly(head, patience)) return std::nullopt;
    std::memcpy(&prefix, head.data(), sizeof prefix);
    Bytes frame(ntohl(prefix));
    if (!receive_exactly(frame, patience)) return std::nullopt;
    return frame;
  }
  void close() { x_ours.reset(); }
  [[nodiscard]] int fd() const { return x_ours.get(); }

 private:
  bool receive_exactly(Bytes& to, std::chrono::milliseconds patience) {
    size_t done = 0;
    while (done < to.size()) {
      pollfd ready{.fd = x_ours.get(), .events = POLLIN, .revents = 0};
      if (::poll(&ready, 1, static_cast<int>(patience.count())) != 1) return false;
      const ssize_t got = ::recv(x_ours.get(), to.data() + done, to.size() - done, 0);
      if (got <= 0) return false;
      done += static_cast<size_t>(got);
    }
    return true;
  }
  UniqueFd x_ours;
  UniqueFd x_theirs;
};

// A guest's driver of a network card.
class NetGuest {
 public:
  static constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 256 * kMiB};
  static constexpr size_t kHeader = sizeof(virtio_net_hdr_v1);
  static constexpr MacAddress kMac{0x02, 1, 2, 3, 4, 5};

  explicit NetGuest(NetPorts ports, NetOptions options = {}, uint64_t features = ~uint64_t{0},
                    uint16_t queue_size = 64)
      : x_device(NetDevice::create(with_mac(options), std::move(ports)).value()),
        x_guest(*x_memory, *x_device) {
    x_guest.start(features, queue_size);
  }

  NetDevice& device() { return *x_device; }
  FakeTransport& transport() { return x_guest; }
  const NetCounters& counters() { return x_device->counters(); }
  GuestHeap& heap() { return x_guest.heap(); }
  static uint16_t rx(uint16_t pair) { return static_cast<uint16_t>(2 * pair); }
  static uint16_t tx(uint16_t pair) { return static_cast<uint16_t>(2 * pair + 1); }

  // Gives receive buffers, each of these sizes in turn.
  void post(size_t count, uint32_t size, uint16_t pair = 0) {
    for (size_t i = 0; i < count; ++i) post_chain({size}, pair);
    x_guest.kick_if_wanted(rx(pair));
  }
  void post_chain(const std::vector<uint32_t>& sizes, uint16_t pair = 0) {
    std::vector<FakeBuffer> buffers;
    for (const uint32_t size : sizes) buffers.push_back({x_guest.heap().alloc(size), size, true});
    const auto head = x_guest.driver(rx(pair)).add(buffers);
    ASSERT_TRUE(head);
    x_posted[{pair, *head}] = std::move(buffers);
  }

  struct Frame {
    virtio_net_hdr_v1 header{};
    Bytes bytes;
    size_t buffers = 0;
  };
  // The next received frame; nothing if the deadline passes or the device breaks a rule.
  std::optional<Frame> receive(std::chrono::milliseconds patience = FakeTransport::kPatience,
                               uint16_t pair = 0) {
    Frame frame;
    Bytes raw;
    size_t wanted = 1;
    for (; frame.buffers < wanted; ++frame.buffers) {
      const auto used =
          x_guest.driver(rx(pair)).wait_used(x_guest.interrupt(rx(pair)), deadline_in(patience));
      if (!used) return std::nullopt;
      append(raw, x_posted[{pair, used->head}], used->written);
      if (frame.buffers > 0) continue;
      if (raw.size() < kHeader) return std::nullopt;
      std::memcpy(&frame.header, raw.data(), kHeader);
      wanted = frame.header.num_buffers;
      if (wanted == 0) return std::nullopt;
    }
    frame.bytes.assign(raw.begin() + kHeader, raw.end());
    return frame;
  }

  // A frame's buffers, cut into `pieces` behind the header.
  std::vector<FakeBuffer> make(const virtio_net_hdr_v1& header, const Bytes& frame,
                               size_t pieces = 1) {
    std::vector<FakeBuffer> buffers;
    // SAFETY: the object's bytes.
    const std::span raw(reinterpret_cast<const uint8_t*>(&header), sizeof header);
    buffers.push_back({heap().put(raw), kHeader, false});
    const GuestAddr data = heap().put(frame);
    for (size_t i = 0; i < pieces; ++i) {
      const size_t from = frame.size() * i / pieces;
      const size_t to = frame.size() * (i + 1) / pieces;
      buffers.push_back({GuestAddr{data.value + from}, static_cast<uint32_t>(to - from), false});
    }
    return buffers;
  }
  // Sends it and waits for the buffers to come back.
  bool send(const Bytes& frame, const virtio_net_hdr_v1& header = {}, size_t pieces = 1,
            uint16_t pair = 0) {
    return x_guest.request(tx(pair), make(header, frame, pieces)).has_value();
  }

  // A command on the control queue: its status, or -1 if it did not come back.
  int command(uint8_t type, uint8_t command, const Bytes& data, size_t pieces = 1) {
    Bytes raw = {type, command};
    raw.insert(raw.end(), data.begin(), data.end());
    return raw_command(raw, pieces);
  }
  int raw_command(const Bytes& raw, size_t pieces = 1) {
    std::vector<FakeBuffer> buffers;
    const GuestAddr at = heap().put(raw);
    for (size_t i = 0; i < pieces && !raw.empty(); ++i) {
      const size_t from = raw.size() * i / pieces;
      const size_t to = raw.size() * (i + 1) / pieces;
      buffers.push_back({GuestAddr{at.value + from}, static_cast<uint32_t>(to - from), false});
    }
    const GuestAddr status = heap().put(Bytes{0xEE});
    buffers.push_back({status, 1, true});
    const auto index = static_cast<uint16_t>(x_guest.queues() - 1);
    if (!x_guest.request(index, buffers)) return -1;
    return *x_memory->load<uint8_t>(status);
  }
  virtio_net_config config() {
    virtio_net_config config{};
    // SAFETY: the object's bytes.
    x_device->read_config(0, {reinterpret_cast<uint8_t*>(&config), NetConfigSpace::kBytes});
    return config;
  }

 private:
  static NetOptions with_mac(NetOptions options) {
    options.mac = kMac;
    return options;
  }
  void append(Bytes& to, const std::vector<FakeBuffer>& buffers, uint32_t written) {
    for (const FakeBuffer& buffer : buffers) {
      const uint32_t part = std::min(buffer.size, written);
      Bytes bytes(part);
      EXPECT_TRUE(x_memory->read(buffer.address, bytes));
      to.insert(to.end(), bytes.begin(), bytes.end());
      written -= part;
    }
    EXPECT_EQ(written, 0u) << "more than there is room for";
  }
  std::unique_ptr<GuestMemory> x_memory = GuestMemory::create({&kRam, 1}, {}).value();
  std::unique_ptr<NetDevice> x_device;
  FakeTransport x_guest;
  std::map<std::pair<uint16_t, uint16_t>, std::vector<FakeBuffer>> x_posted;  // by pair and head
};

}  // namespace lethe
