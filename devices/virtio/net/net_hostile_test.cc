// Drivers that break rules, and other ends that do: each is refused, counted, and without effect on
// what comes after.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "devices/virtio/net/net_test_util.h"

namespace lethe {
namespace {

constexpr uint64_t kWithoutMerging = ~net_bit(VIRTIO_NET_F_MRG_RXBUF);

// Both ways, still.
void expect_works(NetGuest& guest, StreamPeer& peer) {
  const Bytes there = make_frame(99, 1);
  ASSERT_TRUE(guest.send(there));
  EXPECT_EQ(peer.receive(), there);
  guest.post(1, 2048);
  const Bytes back = make_frame(1400, 2);
  peer.send(back);
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, back);
}

TEST(NetHostile, refuses_frames_with_bad_headers) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  std::vector<virtio_net_hdr_v1> headers;
  virtio_net_hdr_v1 header{};
  header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;  // a stream has no offloads
  headers.push_back(header);
  header.csum_start = header.csum_offset = 0xFFFF;
  headers.push_back(header);
  for (const uint8_t type : Bytes{1, 3, 4, 5, 0x81, 0x80, 0xFF}) {
    header = {};
    header.gso_type = type;
    header.gso_size = 0xFFFF;
    header.hdr_len = 0xFFFF;
    headers.push_back(header);
  }
  for (const auto& bad : headers) EXPECT_TRUE(guest.send(make_frame(200, 9), bad));
  EXPECT_EQ(guest.counters().tx_refused, headers.size());
  EXPECT_EQ(guest.counters().tx_frames, 0u);
  expect_works(guest, peer);
}

TEST(NetHostile, ignores_flags_and_counts_that_mean_nothing_to_a_sender) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  virtio_net_hdr_v1 header{};
  header.flags = VIRTIO_NET_HDR_F_DATA_VALID | VIRTIO_NET_HDR_F_RSC_INFO | 0xF0;
  header.num_buffers = 0xFFFF;
  header.csum_start = header.csum_offset = header.hdr_len = header.gso_size = 0xFFFF;
  EXPECT_TRUE(guest.send(make_frame(200, 9), header));
  EXPECT_EQ(peer.receive(), make_frame(200, 9));
}

TEST(NetHostile, refuses_frames_that_are_too_short_or_too_long) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  for (const size_t size : {size_t{0}, size_t{1}, size_t{13}, size_t{65536}, size_t{1} << 20})
    EXPECT_TRUE(guest.send(make_frame(size, 1))) << size;
  EXPECT_EQ(guest.counters().tx_refused, 5u);
  // Chains that end within the header, or are not readable at all.
  const GuestAddr at = guest.heap().alloc(64);
  for (const uint32_t size : {1u, 11u}) {
    const FakeBuffer buffer{at, size, false};
    EXPECT_TRUE(guest.transport().request(1, {&buffer, 1}));
  }
  const FakeBuffer writable{at, 64, true};
  EXPECT_EQ(guest.transport().request(1, {&writable, 1}), 0u) << "nothing was written";
  EXPECT_EQ(guest.counters().tx_refused, 8u);
  expect_works(guest, peer);
}

TEST(NetHostile, sends_frames_in_very_many_pieces_or_refuses_them) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {.queue_size = 1024}, ~uint64_t{0}, 1024);
  const Bytes frame = make_frame(1023, 5);
  EXPECT_TRUE(guest.send(frame, {}, 1000));
  EXPECT_EQ(peer.receive(), frame);
  EXPECT_TRUE(guest.send(frame, {}, 1022));
  EXPECT_EQ(peer.receive(), frame);
  EXPECT_TRUE(guest.send(frame, {}, 1023)) << "with the header, one more than the host can take";
  EXPECT_EQ(guest.counters().tx_refused, 1u);
  expect_works(guest, peer);
}

TEST(NetHostile, drops_a_frame_that_no_buffer_holds) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {}, kWithoutMerging);
  guest.post(2, 512);
  peer.send(make_frame(501, 1));  // with the header one too many
  peer.send(make_frame(500, 2));
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, make_frame(500, 2));
  EXPECT_EQ(guest.counters().rx_too_large, 1u);
}

TEST(NetHostile, drops_a_frame_that_all_buffers_together_do_not_hold) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {}, ~uint64_t{0}, 8);
  guest.post(8, 100);
  peer.send(make_frame(5000, 1));
  peer.send(make_frame(300, 2));
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, make_frame(300, 2));
  EXPECT_EQ(got->header.num_buffers, 4);
  EXPECT_EQ(guest.counters().rx_too_large, 1u);
}

TEST(NetHostile, refuses_receive_buffers_without_room_for_the_header) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  guest.post(3, 11);
  const FakeBuffer readable{guest.heap().alloc(2048), 2048, false};
  ASSERT_TRUE(guest.transport().driver(0).add({&readable, 1}));
  guest.post(1, 2048);
  peer.send(make_frame(700, 3));
  for (int i = 0; i < 4; ++i) {
    const auto used = guest.transport().driver(0).wait_used(guest.transport().interrupt(0),
                                                            deadline_in(FakeTransport::kPatience));
    ASSERT_TRUE(used);
    EXPECT_EQ(used->written, 0u);
  }
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, make_frame(700, 3));
  EXPECT_EQ(guest.counters().rx_refused, 4u);
}

TEST(NetHostile, takes_receive_buffers_of_one_byte_a_piece) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {.queue_size = 256}, ~uint64_t{0}, 256);
  guest.post_chain(std::vector<uint32_t>(100, 1));
  guest.post_chain(std::vector<uint32_t>(100, 1));
  guest.transport().kick_if_wanted(0);
  const Bytes frame = make_frame(150, 4);
  peer.send(frame);
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, frame);
}

TEST(NetHostile, drops_a_frame_that_would_be_in_too_many_pieces) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {.queue_size = 1024}, ~uint64_t{0}, 1024);
  guest.post_chain(std::vector<uint32_t>(500, 1));
  guest.post_chain(std::vector<uint32_t>(520, 1));
  guest.transport().kick_if_wanted(0);
  peer.send(make_frame(1005, 1));  // 1017 with the header: the host takes no more than 1000
  peer.send(make_frame(600, 2));
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, make_frame(600, 2));
  EXPECT_EQ(guest.counters().rx_too_large, 1u);
}

TEST(NetHostile, a_broken_ring_asks_for_a_reset_and_works_after_it) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  for (uint16_t queue = 0; queue < 3; ++queue) {
    guest.transport().driver(queue).raw_publish(9999);
    guest.transport().kick(queue);
    // The receive queue is looked at when a frame is there.
    if (queue == 0) peer.send(make_frame(60, 1));
    ASSERT_TRUE(guest.transport().wait_needs_reset(1)) << queue;
    guest.transport().reset();
    guest.transport().start();
    if (queue == 0) {
      guest.post(1, 2048);
      ASSERT_TRUE(guest.receive());
    }
    expect_works(guest, peer);
  }
}

TEST(NetHostile, resets_and_stopped_queues_under_load_lose_no_step_of_the_stream) {
  StreamPeer peer;
  NetGuest guest(peer.ports(), {}, ~uint64_t{0}, 64);
  std::atomic<bool> done{false};
  std::thread sender([&] {
    for (uint32_t i = 0; !done; ++i) peer.send(make_frame(10'000, i));
  });
  for (int round = 0; round < 60; ++round) {
    guest.post(20, 1000 + static_cast<uint32_t>(round));
    const auto got = guest.receive();
    ASSERT_TRUE(got) << round;
    EXPECT_EQ(got->bytes.size(), 10'000u) << round;
    if (round % 2 == 0) {
      guest.transport().stop_queue(0);  // perhaps in the midst of a frame
      guest.transport().restart_queue(0);
    } else {
      guest.transport().reset();
      guest.transport().start();
    }
  }
  done = true;
  // The sender may be waiting for room.
  guest.device().set_link(false);
  guest.post(1, 2048);
  sender.join();
}

TEST(NetHostile, a_length_that_no_frame_has_ends_the_stream) {
  for (const uint32_t length : {65536u, 0x7FFF'FFFFu, 0xFFFF'FFFFu}) {
    StreamPeer peer;
    std::atomic<int> lost{0};
    NetGuest guest(peer.ports(), {.on_lost = [&] { ++lost; }});
    guest.post(2, 2048);
    peer.send_raw(StreamPeer::wire(Bytes(60)));
    Bytes raw(4);
    const uint32_t prefix = htonl(length);
    std::memcpy(raw.data(), &prefix, sizeof prefix);
    peer.send_raw(raw);
    EXPECT_TRUE(guest.receive());
    EXPECT_TRUE(eventually([&] { return lost == 1; }));
    EXPECT_FALSE(guest.device().link_up());
  }
}

TEST(NetHostile, passes_over_frames_of_no_bytes) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  guest.post(1, 2048);
  for (int i = 0; i < 100; ++i) peer.send({});
  peer.send(make_frame(60, 1));
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, make_frame(60, 1));
}

}  // namespace
}  // namespace lethe
