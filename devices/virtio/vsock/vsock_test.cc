// virtio-vsock: what a good guest and good host programs get.
#include "devices/virtio/vsock/vsock.h"

#include <gmock/gmock.h>

#include "devices/virtio/vsock/vsock_test_util.h"

namespace lethe {
namespace {

constexpr uint16_t kRequest = VIRTIO_VSOCK_OP_REQUEST;
constexpr uint16_t kRst = VIRTIO_VSOCK_OP_RST;
constexpr uint16_t kRw = VIRTIO_VSOCK_OP_RW;
constexpr uint16_t kShutdown = VIRTIO_VSOCK_OP_SHUTDOWN;
constexpr uint32_t kRcv = VIRTIO_VSOCK_SHUTDOWN_RCV;
constexpr uint32_t kSend = VIRTIO_VSOCK_SHUTDOWN_SEND;

TEST(VsockTest, config_is_the_guests_cid) {
  VsockGuest guest;
  virtio_vsock_config config{};
  guest.device().read_config(0, {reinterpret_cast<uint8_t*>(&config), sizeof config});
  EXPECT_EQ(config.guest_cid, FakeVsockDriver::kCid);
  EXPECT_EQ(guest.device().queue_sizes_max().size(), 3U);
}

TEST(VsockTest, host_client_connects_to_a_port_of_the_guest) {
  VsockGuest guest;
  HostSocket host = HostSocket::connect(guest.path());
  ASSERT_TRUE(host.write("CONNECT 1024\n"));
  const auto request = guest.driver().receive();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->header.op, kRequest);
  EXPECT_EQ(request->header.type, VIRTIO_VSOCK_TYPE_STREAM);
  EXPECT_EQ(request->header.src_cid, kVsockHostCid);
  EXPECT_EQ(request->header.dst_cid, FakeVsockDriver::kCid);
  EXPECT_EQ(request->header.dst_port, 1024U);
  EXPECT_EQ(request->header.src_port, 1U << 30);
  EXPECT_EQ(request->header.buf_alloc, kVsockBufferBytes);
  const VsockPorts ports{.host = request->header.src_port, .guest = 1024};
  ASSERT_TRUE(guest.driver().send(VIRTIO_VSOCK_OP_RESPONSE, ports));
  EXPECT_EQ(host.read_line(), "OK 1073741824\n");
  EXPECT_EQ(guest.counters().from_host.load(), 1U);

  ASSERT_TRUE(host.write("hello guest"));
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->header.op, kRw);
  EXPECT_EQ(data->header.len, 11U);
  EXPECT_EQ(data->payload, "hello guest");
  ASSERT_TRUE(guest.driver().send_data(ports, "hello host"));
  EXPECT_EQ(host.read(10), "hello host");
}

TEST(VsockTest, host_client_is_closed_when_the_guest_refuses) {
  VsockGuest guest;
  HostSocket host = HostSocket::connect(guest.path());
  ASSERT_TRUE(host.write("CONNECT 9\n"));
  const auto request = guest.driver().receive();
  ASSERT_TRUE(request);
  ASSERT_TRUE(guest.driver().send(kRst, {.host = request->header.src_port, .guest = 9}));
  EXPECT_TRUE(host.closed());
  EXPECT_TRUE(guest.driver().drain().empty());  // no RST for a RST
  EXPECT_EQ(guest.counters().refused.load(), 1U);
  EXPECT_EQ(guest.counters().streams.load(), 0U);
}

TEST(VsockTest, what_a_client_sends_right_behind_its_line_is_the_guests) {
  VsockGuest guest;
  HostSocket host = HostSocket::connect(guest.path());
  ASSERT_TRUE(host.write("CONNECT 7\nfirst bytes"));
  const auto request = guest.driver().receive();
  ASSERT_TRUE(request);
  ASSERT_TRUE(guest.driver().send(VIRTIO_VSOCK_OP_RESPONSE,
                                  {.host = request->header.src_port, .guest = 7}));
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "first bytes");
}

TEST(VsockTest, guest_connects_to_a_listener_of_the_host) {
  VsockGuest guest;
  const VsockPorts ports{.host = 52, .guest = 3000};
  const UniqueFd listener = listen_at(guest.path(52));
  HostSocket host = guest.open_from_guest(listener, ports);
  ASSERT_TRUE(guest.driver().send_data(ports, "ping"));
  EXPECT_EQ(host.read(4), "ping");
  ASSERT_TRUE(host.write("pong"));
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "pong");
  EXPECT_EQ(data->header.src_port, 52U);
  EXPECT_EQ(data->header.dst_port, 3000U);
  EXPECT_EQ(guest.counters().from_guest.load(), 1U);
}

TEST(VsockTest, guest_is_refused_where_nobody_listens) {
  VsockGuest guest;
  const VsockPorts ports{.host = 53, .guest = 3001};
  ASSERT_TRUE(guest.driver().send(kRequest, ports));
  EXPECT_TRUE(guest.expect_op(kRst, ports));
  EXPECT_EQ(guest.counters().refused.load(), 1U);
  EXPECT_EQ(guest.counters().streams.load(), 0U);
}

TEST(VsockTest, host_that_shuts_down_writing_still_reads) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(host.write("question"));
  host.shut(SHUT_WR);
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "question");
  EXPECT_TRUE(guest.expect_op(kShutdown, ports, kSend));
  ASSERT_TRUE(guest.driver().send_data(ports, "answer"));
  EXPECT_EQ(host.read(6), "answer");
  // Closed whole, it is told the rest.
  host.close();
  EXPECT_TRUE(guest.expect_op(kShutdown, ports, kRcv | kSend));
  ASSERT_TRUE(guest.driver().send(kRst, ports));
  EXPECT_TRUE(eventually([&] { return guest.counters().streams.load() == 0; }));
}

TEST(VsockTest, guest_that_shuts_down_sending_still_receives) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(guest.driver().send_data(ports, "question"));
  ASSERT_TRUE(guest.driver().send(kShutdown, ports, kSend));
  EXPECT_EQ(host.read(100), "question");  // and the end
  ASSERT_TRUE(host.write("answer"));
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "answer");
  ASSERT_TRUE(guest.driver().send(kShutdown, ports, kRcv | kSend));
  EXPECT_TRUE(guest.expect_op(kRst, ports));
  EXPECT_EQ(guest.counters().streams.load(), 0U);
}

TEST(VsockTest, guest_that_shuts_down_receiving_makes_the_hosts_writes_fail) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(guest.driver().send(kShutdown, ports, kRcv));
  EXPECT_FALSE(host.write("x"));
  ASSERT_TRUE(guest.driver().send_data(ports, "still here"));
  EXPECT_EQ(host.read(10), "still here");
}

TEST(VsockTest, guest_that_closes_is_confirmed_by_a_reset) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(guest.driver().send_data(ports, "last words"));
  ASSERT_TRUE(guest.driver().send(kShutdown, ports, kRcv | kSend));
  EXPECT_TRUE(guest.expect_op(kRst, ports));
  EXPECT_EQ(host.read(100), "last words");
  EXPECT_TRUE(host.closed());
}

TEST(VsockTest, closed_guest_socket_leaves_its_buffered_bytes_to_a_slow_host) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  // More than the socket takes: the rest is buffered.
  std::string all;
  size_t credit = kVsockBufferBytes;
  while (true) {
    const std::string piece(16 * 1024, static_cast<char>('a' + all.size() / (16 * 1024) % 26));
    if (credit < piece.size()) break;
    ASSERT_TRUE(guest.driver().send_data(ports, piece));
    all += piece;
    credit -= piece.size();
    for (const auto& packet : guest.driver().drain())
      credit = kVsockBufferBytes - (all.size() - packet.header.fwd_cnt);
  }
  ASSERT_TRUE(guest.driver().send(kShutdown, ports, kRcv | kSend));
  EXPECT_TRUE(guest.expect_op(kRst, ports));
  EXPECT_EQ(guest.counters().streams.load(), 1U);  // it goes on by itself
  EXPECT_EQ(host.read(all.size() + 1), all);
  EXPECT_TRUE(host.closed());
  EXPECT_TRUE(eventually([&] { return guest.counters().streams.load() == 0; }));
}

TEST(VsockTest, host_that_closes_is_waited_for_by_a_deadline) {
  VsockGuest guest({}, {.close_max = std::chrono::milliseconds(50)});
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(host.write("bye"));
  host.close();
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "bye");
  EXPECT_TRUE(guest.expect_op(kShutdown, ports, kRcv | kSend));
  EXPECT_TRUE(guest.expect_op(kRst, ports));  // the guest does not answer
  EXPECT_EQ(guest.counters().timeouts.load(), 1U);
}

TEST(VsockTest, ports_of_a_closed_stream_can_be_used_again) {
  VsockGuest guest;
  const VsockPorts ports{.host = 52, .guest = 3000};
  const UniqueFd listener = listen_at(guest.path(52));
  for (int i = 0; i < 20; ++i) {
    HostSocket host = guest.open_from_guest(listener, ports);
    ASSERT_TRUE(guest.driver().send_data(ports, fmt::format("{:4}", i)));
    EXPECT_EQ(host.read(4), fmt::format("{:4}", i));
    ASSERT_TRUE(guest.driver().send(kShutdown, ports, kRcv | kSend));
    EXPECT_TRUE(guest.expect_op(kRst, ports));
    EXPECT_TRUE(host.closed());
  }
}

TEST(VsockTest, restored_guest_is_told_that_its_streams_are_gone) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  FakeTransport& transport = guest.driver().transport();
  transport.freeze();
  const std::vector<uint8_t> state = transport.save();
  const UniqueFd listener = listen_at(guest.path() + ".new");
  const auto restored = VsockDevice::create(
      {.cid = FakeVsockDriver::kCid, .path = guest.path() + ".new", .listener = listener.get()});
  ASSERT_TRUE(restored);
  ASSERT_TRUE(transport.move_to(**restored, state));
  transport.thaw();
  EXPECT_EQ(guest.driver().wait_event(), std::optional<uint32_t>(0));  // TRANSPORT_RESET
  EXPECT_TRUE(host.closed());
  // New ones come, in the buffers that the first device had been given.
  HostSocket again = HostSocket::connect(guest.path() + ".new");
  ASSERT_TRUE(again.write("CONNECT 5\n"));
  const auto request = guest.driver().receive_content();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->header.dst_port, 5U);
  transport.reset();
}

TEST(VsockTest, streams_survive_a_freeze_with_every_byte) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  std::string sent;
  std::string got;
  for (int i = 0; i < 20; ++i) {
    const std::string piece(3000, static_cast<char>('a' + i));
    sent += piece;
    ASSERT_TRUE(host.write(piece));
    guest.driver().transport().freeze();
    guest.driver().transport().thaw();
    while (got.size() < sent.size()) {
      const auto data = guest.driver().receive_content();
      ASSERT_TRUE(data);
      ASSERT_EQ(data->header.op, kRw);
      got += data->payload;
    }
  }
  EXPECT_EQ(got, sent);
}

TEST(VsockTest, streams_survive_a_stop_of_all_queues) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  for (uint16_t i = 0; i < kVsockQueues; ++i) guest.driver().transport().stop_queue(i);
  ASSERT_TRUE(host.write("meanwhile"));
  guest.driver().restart_queues();
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "meanwhile");
  ASSERT_TRUE(guest.driver().send_data(ports, "back"));
  EXPECT_EQ(host.read(4), "back");
}

TEST(VsockTest, reset_of_the_device_closes_the_hosts_sockets) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  guest.driver().reset();
  EXPECT_TRUE(host.closed());
  EXPECT_EQ(guest.counters().streams.load(), 0U);
  HostSocket nobody = HostSocket::connect(guest.path());
  EXPECT_TRUE(nobody.closed());  // no driver: refused at once
  guest.driver().start();
  HostSocket again = guest.open_from_host(ports);
  ASSERT_TRUE(again.write("x"));
  EXPECT_EQ(guest.driver().receive_content()->payload, "x");
}

}  // namespace
}  // namespace lethe
