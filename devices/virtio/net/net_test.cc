// What a good driver gets of a card whose other end is a stream.
#include "devices/virtio/net/net.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <atomic>
#include <thread>

#include "devices/virtio/net/net_test_util.h"

namespace lethe {
namespace {

constexpr uint64_t kWithoutMerging = ~net_bit(VIRTIO_NET_F_MRG_RXBUF);
constexpr std::chrono::milliseconds kSoon{50};  // for what must not come

TEST(NetTest, sends_what_the_guest_wrote) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  for (const size_t size : {14, 60, 1514, 9000, 65535}) {
    for (const size_t pieces : {1, 3, 17}) {
      const Bytes frame = make_frame(size, static_cast<uint32_t>(size + pieces));
      ASSERT_TRUE(guest.send(frame, {}, pieces));
      EXPECT_EQ(peer.receive(), frame);
    }
  }
  EXPECT_EQ(guest.counters().tx_frames, 15u);
  EXPECT_EQ(guest.counters().tx_bytes, 3u * (14 + 60 + 1514 + 9000 + 65535));
}

TEST(NetTest, takes_every_layout_of_header_and_frame) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  const Bytes frame = make_frame(200, 1);
  Bytes whole(NetGuest::kHeader);
  whole.insert(whole.end(), frame.begin(), frame.end());
  for (const uint32_t cut : {1u, 5u, 11u, 12u, 13u, 100u}) {
    const GuestAddr at = guest.heap().put(whole);
    const FakeBuffer buffers[] = {
        {at, cut, false},
        {GuestAddr{at.value + cut}, static_cast<uint32_t>(whole.size()) - cut, false}};
    for (const auto table : {FakeDriver::Table::kDirect, FakeDriver::Table::kIndirect}) {
      ASSERT_TRUE(guest.transport().request(1, buffers, table));
      EXPECT_EQ(peer.receive(), frame) << cut;
    }
  }
}

TEST(NetTest, receives_what_the_other_end_sent) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  guest.post(8, 2048);
  for (const size_t size : {1, 14, 60, 1514, 2036}) {
    const Bytes frame = make_frame(size, static_cast<uint32_t>(size));
    peer.send(frame);
    const auto got = guest.receive();
    ASSERT_TRUE(got);
    EXPECT_EQ(got->bytes, frame);
    EXPECT_EQ(got->header.num_buffers, 1);
    EXPECT_EQ(got->header.flags, VIRTIO_NET_HDR_F_DATA_VALID);
    EXPECT_EQ(got->header.gso_type, VIRTIO_NET_HDR_GSO_NONE);
  }
}

TEST(NetTest, says_that_checksums_are_good_only_to_who_knows_it) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {}, ~net_bit(VIRTIO_NET_F_GUEST_CSUM));
  guest.post(1, 2048);
  peer.send(make_frame(60, 1));
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->header.flags, 0);
}

TEST(NetTest, merges_as_many_buffers_as_a_frame_needs) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  guest.post(60, 1536);
  const Bytes frame = make_frame(65535, 7);
  peer.send(frame);
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->header.num_buffers, (65535 + 12 + 1535) / 1536);
  EXPECT_TRUE(got->bytes == frame);
}

TEST(NetTest, uses_one_buffer_a_frame_without_merging) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {}, kWithoutMerging);
  guest.post_chain({12, 500, 1000});
  guest.post_chain({2048});
  guest.transport().kick_if_wanted(0);
  for (const uint32_t seed : {1u, 2u}) {
    const Bytes frame = make_frame(1400, seed);
    peer.send(frame);
    const auto got = guest.receive();
    ASSERT_TRUE(got);
    EXPECT_EQ(got->bytes, frame);
    EXPECT_EQ(got->header.num_buffers, 1);
  }
}

TEST(NetTest, waits_for_buffers_and_loses_no_frame) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  for (uint32_t i = 0; i < 10; ++i) peer.send(make_frame(100 + i, i));
  EXPECT_FALSE(guest.receive(kSoon));
  for (uint32_t i = 0; i < 10; ++i) {
    guest.post(1, 512);
    const auto got = guest.receive();
    ASSERT_TRUE(got);
    EXPECT_EQ(got->bytes, make_frame(100 + i, i));
  }
}

TEST(NetTest, reads_a_stream_cut_anywhere) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  guest.post(64, 4096);
  Bytes stream;
  for (uint32_t i = 0; i < 5; ++i) {
    const Bytes wire = StreamPeer::wire(make_frame(9000 + i * 3000, i));
    stream.insert(stream.end(), wire.begin(), wire.end());
  }
  size_t done = 0;
  for (size_t piece = 1; done < stream.size(); piece = piece * 3 + 1) {
    const size_t end = std::min(stream.size(), done + piece);
    peer.send_raw(Bytes(stream.begin() + static_cast<ptrdiff_t>(done),
                        stream.begin() + static_cast<ptrdiff_t>(end)));
    done = end;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // so that it is read in pieces
  }
  for (uint32_t i = 0; i < 5; ++i) {
    const auto got = guest.receive();
    ASSERT_TRUE(got);
    EXPECT_TRUE(got->bytes == make_frame(9000 + i * 3000, i)) << i;
  }
}

TEST(NetTest, goes_on_when_the_other_end_reads_again) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  // More than a socket holds: the ring fills while nobody reads.
  std::vector<Bytes> frames;
  for (uint32_t i = 0; i < 32; ++i) frames.push_back(make_frame(40'000, i));
  for (const Bytes& frame : frames) {
    ASSERT_TRUE(guest.transport().driver(1).add(guest.make({}, frame)));
    guest.transport().kick_if_wanted(1);
  }
  for (const Bytes& frame : frames) EXPECT_TRUE(peer.receive() == frame);
  for (size_t i = 0; i < frames.size(); ++i)
    EXPECT_TRUE(guest.transport().driver(1).wait_used(guest.transport().interrupt(1),
                                                      deadline_in(FakeTransport::kPatience)));
}

TEST(NetTest, sends_a_frame_that_the_socket_takes_in_parts) {
  StreamPeer peer(4096);
  NetGuest guest(peer.ports());
  for (uint32_t i = 0; i < 5; ++i) {
    const Bytes frame = make_frame(60'000, i);
    ASSERT_TRUE(guest.transport().driver(1).add(guest.make({}, frame)));
    guest.transport().kick_if_wanted(1);
    // The guest has nothing more to send: what is left goes when there is room.
    EXPECT_TRUE(peer.receive() == frame);
  }
}

// Frames in equal frames out, in order, whatever their sizes and the buffers'.
RC_GTEST_PROP(NetProperty, what_goes_in_comes_out_in_order, ()) {
  const auto sizes = *rc::gen::container<std::vector<uint16_t>>(
      rc::gen::oneOf(rc::gen::inRange<uint16_t>(14, 200), rc::gen::inRange<uint16_t>(14, 20'000)));
  const auto room = *rc::gen::inRange<uint32_t>(64, 4096);
  const auto pieces = *rc::gen::inRange<size_t>(1, 6);
  const bool merging = *rc::gen::arbitrary<bool>();
  StreamPeer peer;
  constexpr uint16_t kRing = 512;  // 20'000 bytes in buffers of 64 are 313
  NetGuest guest(peer.ports(), {.queue_size = kRing}, merging ? ~uint64_t{0} : kWithoutMerging,
                 kRing);
  for (uint32_t i = 0; i < sizes.size(); ++i) {
    const Bytes frame = make_frame(sizes[i], i);
    RC_ASSERT(guest.send(frame, {}, pieces));
    RC_ASSERT(peer.receive() == frame);
    if (merging)
      guest.post((sizes[i] + NetGuest::kHeader + room - 1) / room, room);
    else
      guest.post(1, static_cast<uint32_t>(sizes[i] + NetGuest::kHeader));
    peer.send(frame);
    const auto got = guest.receive();
    RC_ASSERT(got.has_value());
    RC_ASSERT(got->bytes == frame);
  }
  RC_ASSERT(guest.counters().rx_frames == sizes.size());
}

TEST(NetTest, keeps_order_under_load_both_ways) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {}, ~uint64_t{0}, 256);
  constexpr uint32_t kFrames = 3000;
  std::thread echo([&] {
    for (uint32_t i = 0; i < kFrames; ++i) {
      const auto frame = peer.receive();
      if (!frame) return;
      peer.send(*frame);
    }
  });
  // Some 40 frames are out at a time.
  uint32_t sent = 0;
  uint32_t received = 0;
  std::vector<std::vector<FakeBuffer>> ready;
  for (uint32_t i = 0; i < 50; ++i) {
    Bytes frame = make_frame(100 + i * 50, i);
    ready.push_back(guest.make({}, frame));
  }
  while (received < kFrames) {
    while (sent < kFrames && sent - received < 40) {
      while (guest.transport().driver(1).poll_used()) {
      }
      if (!guest.transport().driver(1).add(ready[sent % 50])) break;
      guest.transport().kick_if_wanted(1);
      guest.post(1, 4096);
      ++sent;
    }
    const auto got = guest.receive();
    ASSERT_TRUE(got) << received;
    ASSERT_TRUE(got->bytes == make_frame(100 + received % 50 * 50, received % 50)) << received;
    ++received;
  }
  echo.join();
  EXPECT_EQ(guest.counters().tx_frames, kFrames);
  EXPECT_EQ(guest.counters().rx_frames, kFrames);
}

TEST(NetTest, tells_its_configuration) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {.mtu = 9000});
  const virtio_net_config config = guest.config();
  EXPECT_TRUE(std::equal(NetGuest::kMac.begin(), NetGuest::kMac.end(), config.mac));
  EXPECT_EQ(config.status, VIRTIO_NET_S_LINK_UP);
  EXPECT_EQ(config.max_virtqueue_pairs, 1);
  EXPECT_EQ(config.mtu, 9000);
}

TEST(NetTest, offers_no_offload_that_a_stream_can_not_do) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  const uint64_t offered = guest.device().device_features();
  for (const unsigned feature :
       {VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
        VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS})
    EXPECT_EQ(offered & net_bit(feature), 0u) << feature;
  for (const unsigned feature : {VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MTU,
                                 VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_CTRL_VQ})
    EXPECT_NE(offered & net_bit(feature), 0u) << feature;
}

TEST(NetLink, down_drops_frames_of_both_sides_and_up_lets_them_pass) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  guest.post(4, 2048);
  guest.device().set_link(false);
  EXPECT_TRUE(guest.transport().wait_config_changes(1));
  EXPECT_EQ(guest.config().status, 0);
  EXPECT_TRUE(guest.send(make_frame(60, 1)));
  EXPECT_EQ(guest.counters().tx_dropped, 1u);
  peer.send(make_frame(60, 2));
  EXPECT_TRUE(eventually([&] { return guest.counters().rx_dropped == 1; }));
  guest.device().set_link(true);
  EXPECT_TRUE(guest.transport().wait_config_changes(2));
  EXPECT_EQ(guest.config().status, VIRTIO_NET_S_LINK_UP);
  peer.send(make_frame(60, 3));
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, make_frame(60, 3));
  EXPECT_TRUE(guest.send(make_frame(60, 4)));
  EXPECT_EQ(peer.receive(), make_frame(60, 4));
}

TEST(NetLink, may_be_down_at_first) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {.link = false});
  EXPECT_EQ(guest.config().status, 0);
  EXPECT_FALSE(guest.device().link_up());
}

TEST(NetLink, goes_down_when_the_other_end_dies_and_comes_back_with_a_new_one) {
  StreamPeer first;
  std::atomic<int> lost{0};
  NetGuest guest(first.ports(), {.on_lost = [&] { ++lost; }});
  guest.post(8, 2048);
  // What was sent before the end is delivered, half a frame is not.
  first.send(make_frame(500, 1));
  Bytes half = StreamPeer::wire(make_frame(1000, 2));
  half.resize(300);
  first.send_raw(half);
  first.close();
  const auto before = guest.receive();
  ASSERT_TRUE(before);
  EXPECT_EQ(before->bytes, make_frame(500, 1));
  EXPECT_TRUE(guest.transport().wait_config_changes(1));
  EXPECT_EQ(guest.config().status, 0);
  EXPECT_TRUE(eventually([&] { return lost == 1; }));
  EXPECT_TRUE(guest.send(make_frame(60, 3))) << "the guest gets its buffers back";

  StreamPeer second;
  guest.device().connect(second.ports());
  EXPECT_TRUE(guest.transport().wait_config_changes(2));
  EXPECT_EQ(guest.config().status, VIRTIO_NET_S_LINK_UP);
  second.send(make_frame(700, 4));
  const auto after = guest.receive();
  ASSERT_TRUE(after);
  EXPECT_EQ(after->bytes, make_frame(700, 4));
  EXPECT_TRUE(guest.send(make_frame(60, 5)));
  EXPECT_EQ(second.receive(), make_frame(60, 5));
  EXPECT_EQ(lost, 1);
}

TEST(NetLink, notices_an_end_that_died_while_nobody_read) {
  StreamPeer peer;
  std::atomic<int> lost{0};
  NetGuest guest(peer.ports(), {.on_lost = [&] { ++lost; }});  // without receive buffers
  peer.send(make_frame(60, 1));
  peer.close();
  EXPECT_TRUE(eventually([&] { return lost == 1; }));
  EXPECT_FALSE(guest.device().link_up());
}

TEST(NetLimits, hold_frames_back_and_lose_none) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {.limits = {.packets_max = 100}});  // 10 at once
  const auto start = std::chrono::steady_clock::now();
  for (uint32_t i = 0; i < 30; ++i) {
    ASSERT_TRUE(guest.transport().driver(1).add(guest.make({}, make_frame(60, i))));
    guest.transport().kick_if_wanted(1);
  }
  for (uint32_t i = 0; i < 30; ++i) ASSERT_EQ(peer.receive(), make_frame(60, i));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(150));
  EXPECT_GT(guest.counters().throttled, 0u);
}

// Takes what it is given, and counts how often it is asked for a frame, of which there is none.
class AskedPort final : public NetPort {
 public:
  explicit AskedPort(std::atomic<unsigned>& asked) : x_asked(asked) {}
  [[nodiscard]] int fd() const override { return x_never.fd(); }
  [[nodiscard]] uint64_t offloads() const override { return 0; }
  [[nodiscard]] bool has_header() const override { return false; }
  [[nodiscard]] uint32_t frame_bytes_max() const override { return kStreamFrameBytesMax; }
  void set_guest_offloads(uint64_t /*features*/) override {}
  void set_active(bool /*active*/) override {}
  [[nodiscard]] Sent send(std::span<NetFrame> frames) override { return {.taken = frames.size()}; }
  [[nodiscard]] Next next() override {
    ++x_asked;
    return {.state = NetIoState::kWouldBlock};
  }
  [[nodiscard]] Received receive(std::span<const iovec> /*room*/) override {
    return {.state = NetIoState::kWouldBlock};
  }
  [[nodiscard]] NetIoState skip() override { return NetIoState::kWouldBlock; }

 private:
  std::atomic<unsigned>& x_asked;
  EventFd x_never = EventFd::create().value();
};

TEST(NetTest, looks_again_only_as_long_as_that_pays_off) {
  std::atomic<unsigned> asked{0};
  NetPorts ports;
  ports.push_back(std::make_unique<AskedPort>(asked));
  NetGuest guest(std::move(ports));
  const auto frame = guest.make({}, make_frame(60, 1));
  const auto send = [&](unsigned count) {
    for (unsigned i = 0; i < count; ++i) ASSERT_TRUE(guest.transport().request(1, frame));
  };
  ASSERT_NO_FATAL_FAILURE(send(2000));  // one after another: there it may pay off
  constexpr unsigned kSlow = 50;
  unsigned before = 0;
  for (unsigned i = 0; i < 2 * kSlow; ++i) {
    if (i == kSlow) before = asked;
    // As a guest that sends now and then: what is looked for meanwhile does not come.
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ASSERT_NO_FATAL_FAILURE(send(1));
  }
  EXPECT_LT(asked - before, 8 * kSlow);
}

TEST(NetLimits, hold_for_what_is_received_too) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {.limits = {.bandwidth_max = 100'000}});  // 10 KB at once
  guest.post(40, 2048);
  const auto start = std::chrono::steady_clock::now();
  for (uint32_t i = 0; i < 30; ++i) peer.send(make_frame(1000, i));
  for (uint32_t i = 0; i < 30; ++i) {
    const auto got = guest.receive();
    ASSERT_TRUE(got);
    ASSERT_EQ(got->bytes, make_frame(1000, i));
  }
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(150));
}

TEST(NetLimits, can_be_lifted_while_frames_wait) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {.limits = {.packets_max = 1}});
  for (uint32_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(guest.transport().driver(1).add(guest.make({}, make_frame(60, i))));
    guest.transport().kick_if_wanted(1);
  }
  ASSERT_TRUE(peer.receive());
  guest.device().set_limits({});
  for (uint32_t i = 1; i < 20; ++i)
    ASSERT_EQ(peer.receive(std::chrono::milliseconds(5000)), make_frame(60, i));
}

}  // namespace
}  // namespace lethe
