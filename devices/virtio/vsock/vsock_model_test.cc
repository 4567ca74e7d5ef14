// virtio-vsock: whatever the order of sends, reads and ends on many streams, every byte arrives,
// once and in order, and neither side has more on the way than the other one's credit.
#include <gmock/gmock.h>

#include <random>

#include "devices/virtio/vsock/vsock_test_util.h"

namespace lethe {
namespace {

constexpr unsigned kStreams = 6;
constexpr unsigned kSteps = 1500;
constexpr uint32_t kGuestBuffer = 20'000;
constexpr VsockPorts kFromGuest{.host = 52, .guest = 3000};

// One direction: what was written and what was read, of bytes that say where they belong.
struct Flow {
  unsigned salt = 0;
  uint32_t written = 0;
  uint32_t read = 0;
  bool closed = false;  // by its writer
  bool ended = false;   // as its reader sees it
  [[nodiscard]] std::string next(size_t bytes) const {
    std::string piece(bytes, '\0');
    for (size_t i = 0; i < bytes; ++i) piece[i] = at(written + static_cast<uint32_t>(i));
    return piece;
  }
  [[nodiscard]] char at(uint32_t position) const {
    return static_cast<char>(salt + position * 7 + (position >> 8) * 31);
  }
  void check(const std::string& piece) {
    ASSERT_LE(read + piece.size(), written);
    for (const char byte : piece) ASSERT_EQ(byte, at(read++));
  }
};

struct Pair {
  explicit Pair(HostSocket socket) : host(std::move(socket)) {}
  VsockPorts ports;
  HostSocket host;
  Flow to_guest;
  Flow to_host;
  uint32_t consumed = 0;  // by the guest's program
  uint32_t said = 0;      // of that, to the device
  uint32_t device_forwarded = 0;
  uint32_t device_buffer = kVsockBufferBytes;
};

class Model {
 public:
  explicit Model(unsigned seed)
      : x_random(seed),
        x_guest({.queue_size = 256, .rx_buffers = 40, .buf_alloc = kGuestBuffer}),
        x_listener(listen_at(x_guest.path(kFromGuest.host))) {
    for (unsigned i = 0; i < kStreams; ++i) {
      VsockPorts ports{.host = kFromGuest.host, .guest = kFromGuest.guest + i};
      x_pairs.emplace_back(i % 2 == 0 ? x_guest.open_from_host(ports, 100 + i)
                                      : x_guest.open_from_guest(x_listener, ports));
      x_pairs.back().ports = ports;
      x_pairs.back().to_guest.salt = 2 * i;
      x_pairs.back().to_host.salt = 2 * i + 1;
    }
  }

  void run() {
    for (unsigned step = 0; step < kSteps && !::testing::Test::HasFatalFailure(); ++step)
      one_step(x_pairs[up_to(kStreams - 1)]);
    for (Pair& pair : x_pairs) close_both(pair);
    ASSERT_TRUE(eventually([&] {
      for (Pair& pair : x_pairs) {
        read_as_host(pair, 1 << 20);
        consume(pair, kGuestBuffer);
      }
      take_packets();
      return ::testing::Test::HasFatalFailure() ||
             std::ranges::all_of(x_pairs, [](const Pair& pair) {
               return pair.to_guest.ended && pair.to_host.ended;
             });
    }));
    for (const Pair& pair : x_pairs) {
      EXPECT_EQ(pair.to_guest.read, pair.to_guest.written);
      EXPECT_EQ(pair.to_host.read, pair.to_host.written);
    }
    EXPECT_EQ(x_guest.counters().credit_broken.load(), 0U);
    EXPECT_EQ(x_guest.counters().stray.load(), 0U);
  }

 private:
  unsigned up_to(unsigned max) { return std::uniform_int_distribution<unsigned>(0, max)(x_random); }
  // Mostly small, sometimes large.
  unsigned some_size() { return 1 + (up_to(3) == 0 ? up_to(60'000) : up_to(300)); }

  void one_step(Pair& pair) {
    switch (up_to(9)) {
      case 0:
      case 1:
        if (!pair.to_guest.closed)
          pair.to_guest.written +=
              static_cast<uint32_t>(pair.host.write_some(pair.to_guest.next(some_size())));
        break;
      case 2:
      case 3:
        send_as_guest(pair);
        break;
      case 4:
        read_as_host(pair, some_size());
        break;
      case 5:
      case 6:
        take_packets();
        break;
      case 7:
        consume(pair, some_size());
        break;
      case 8:
        if (up_to(60) == 0) close_host(pair);
        break;
      default:
        if (up_to(60) == 0) close_guest(pair);
        break;
    }
  }

  bool say(Pair& pair, uint16_t op, const std::string& payload = {}, uint32_t flags = 0) {
    virtio_vsock_hdr header = x_guest.driver().header(op, pair.ports);
    header.fwd_cnt = pair.said = pair.consumed;
    header.flags = flags;
    header.len = static_cast<uint32_t>(payload.size());
    return x_guest.driver().send(header, payload);
  }
  void send_as_guest(Pair& pair) {
    const uint32_t in_flight = pair.to_host.written - pair.device_forwarded;
    ASSERT_LE(in_flight, pair.device_buffer);
    const uint32_t bytes = std::min<uint32_t>(some_size(), pair.device_buffer - in_flight);
    if (bytes == 0 || pair.to_host.closed) return;
    ASSERT_TRUE(say(pair, VIRTIO_VSOCK_OP_RW, pair.to_host.next(bytes)));
    pair.to_host.written += bytes;
  }
  void read_as_host(Pair& pair, size_t bytes) {
    std::string piece(bytes, '\0');
    const ssize_t got = ::recv(pair.host.fd(), piece.data(), piece.size(), 0);
    if (got == 0) pair.to_host.ended = true;
    piece.resize(got < 0 ? 0 : static_cast<size_t>(got));
    pair.to_host.check(piece);
  }
  void consume(Pair& pair, uint32_t bytes) {
    pair.consumed += std::min(bytes, pair.to_guest.read - pair.consumed);
    if (pair.consumed - pair.said > kGuestBuffer / 2 || up_to(4) == 0)
      ASSERT_TRUE(say(pair, VIRTIO_VSOCK_OP_CREDIT_UPDATE));
  }
  void take_packets() {
    while (const auto packet = x_guest.driver().receive(std::chrono::milliseconds(0))) {
      const auto found = std::ranges::find_if(x_pairs, [&](const Pair& pair) {
        return pair.ports.host == packet->header.src_port &&
               pair.ports.guest == packet->header.dst_port;
      });
      ASSERT_NE(found, x_pairs.end());
      found->device_forwarded = packet->header.fwd_cnt;
      found->device_buffer = packet->header.buf_alloc;
      ASSERT_LE(found->device_forwarded, found->to_host.written);
      switch (packet->header.op) {
        case VIRTIO_VSOCK_OP_RW:
          ASSERT_FALSE(found->to_guest.ended);
          found->to_guest.check(packet->payload);
          ASSERT_LE(found->to_guest.read - found->said, kGuestBuffer);
          break;
        case VIRTIO_VSOCK_OP_SHUTDOWN:
          ASSERT_NE(packet->header.flags & VIRTIO_VSOCK_SHUTDOWN_SEND, 0U);
          found->to_guest.ended = true;
          break;
        default:
          ASSERT_THAT(packet->header.op, ::testing::AnyOf(VIRTIO_VSOCK_OP_CREDIT_UPDATE,
                                                          VIRTIO_VSOCK_OP_CREDIT_REQUEST));
      }
    }
  }
  void close_host(Pair& pair) {
    if (!std::exchange(pair.to_guest.closed, true)) pair.host.shut(SHUT_WR);
  }
  void close_guest(Pair& pair) {
    if (!std::exchange(pair.to_host.closed, true))
      ASSERT_TRUE(say(pair, VIRTIO_VSOCK_OP_SHUTDOWN, {}, VIRTIO_VSOCK_SHUTDOWN_SEND));
  }
  void close_both(Pair& pair) {
    close_host(pair);
    close_guest(pair);
  }

  std::mt19937 x_random;
  VsockGuest x_guest;
  UniqueFd x_listener;
  std::vector<Pair> x_pairs;
};

TEST(VsockModelTest, bytes_arrive_once_and_in_order_whatever_the_interleaving) {
  for (unsigned seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(seed);
    Model(seed).run();
    if (HasFatalFailure()) return;
  }
}

TEST(VsockCreditTest, guest_may_send_what_it_was_told_and_no_byte_more) {
  VsockCredit credit(1000);
  ASSERT_FALSE(credit.receive(1001));
  ASSERT_TRUE(credit.receive(1000));
  ASSERT_FALSE(credit.receive(1));
  credit.forward(1000);
  ASSERT_FALSE(credit.receive(1));  // it was not told yet
  ASSERT_TRUE(credit.update_due());
  (void)credit.tell();
  ASSERT_FALSE(credit.update_due());
  ASSERT_TRUE(credit.receive(1000));
}

TEST(VsockCreditTest, wraps_where_its_counters_do) {
  VsockCredit credit(1U << 30);
  ASSERT_TRUE(credit.peer_tells(1U << 30, 0));
  uint32_t forwarded = 0;
  for (int i = 0; i < 16; ++i) {  // four times around
    credit.sent(1U << 30);
    ASSERT_EQ(credit.available(), 0U);
    forwarded += 1U << 30;
    ASSERT_TRUE(credit.peer_tells(1U << 30, forwarded));
    ASSERT_EQ(credit.available(), 1U << 30);
    ASSERT_TRUE(credit.receive(1U << 30));
    ASSERT_EQ(credit.buffered(), 1U << 30);
    ASSERT_FALSE(credit.receive(1));
    credit.forward(1U << 30);
    (void)credit.tell();
  }
}

TEST(VsockCreditTest, older_counts_tell_nothing_and_counts_ahead_are_refused) {
  VsockCredit credit(1000);
  ASSERT_TRUE(credit.peer_tells(500, 0));
  credit.sent(400);
  ASSERT_TRUE(credit.peer_tells(500, 300));
  ASSERT_EQ(credit.available(), 400U);
  ASSERT_TRUE(credit.peer_tells(500, 200));  // overtaken by the other one
  ASSERT_EQ(credit.available(), 400U);
  ASSERT_FALSE(credit.peer_tells(500, 401));
  ASSERT_TRUE(credit.peer_tells(50, 300));  // a smaller buffer: nothing until it has room
  ASSERT_EQ(credit.available(), 0U);
}

}  // namespace
}  // namespace lethe
