// virtio-vsock: host programs that break the rules, go away, or do not listen.
#include <gmock/gmock.h>

#include <fstream>

#include "devices/virtio/vsock/vsock_test_util.h"

namespace lethe {
namespace {

constexpr uint16_t kRequest = VIRTIO_VSOCK_OP_REQUEST;
constexpr uint16_t kResponse = VIRTIO_VSOCK_OP_RESPONSE;
constexpr uint16_t kRst = VIRTIO_VSOCK_OP_RST;
constexpr uint16_t kShutdown = VIRTIO_VSOCK_OP_SHUTDOWN;
constexpr uint32_t kBoth = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;
constexpr VsockPorts kPorts{.host = 52, .guest = 3000};
constexpr std::chrono::milliseconds kSoon{50};

bool no_streams(VsockGuest& guest) {
  return eventually([&] { return guest.counters().streams.load() == 0; });
}

TEST(VsockHostTest, garbage_instead_of_connect_is_closed) {
  VsockGuest guest;
  uint64_t bad = 0;
  for (const char* line :
       {"\n", "GET / HTTP/1.1\r\n", "CONNECT\n", "CONNECT \n", "CONNECT x\n", "CONNECT -1\n",
        "CONNECT 1 2\n", "CONNECT 4294967296\n", "CONNECT5\n", "OK 5\n", "CONNECT 0x10\n"}) {
    HostSocket host = HostSocket::connect(guest.path());
    ASSERT_TRUE(host.write(line));
    EXPECT_TRUE(host.closed()) << line;
    EXPECT_EQ(guest.counters().bad_hellos.load(), ++bad) << line;
  }
  EXPECT_TRUE(guest.driver().drain().empty());
  EXPECT_TRUE(no_streams(guest));
}

TEST(VsockHostTest, connect_is_understood_as_firecracker_does) {
  VsockGuest guest;
  for (const char* line : {"connect 4294967295\n", "Connect  4294967295 \r\n"}) {
    HostSocket host = HostSocket::connect(guest.path());
    ASSERT_TRUE(host.write(line));
    const auto request = guest.driver().receive_content();
    ASSERT_TRUE(request) << line;
    EXPECT_EQ(request->header.dst_port, 0xffff'ffff);
  }
}

TEST(VsockHostTest, line_of_a_mebibyte_is_closed_after_32_bytes) {
  VsockGuest guest;
  HostSocket host = HostSocket::connect(guest.path());
  (void)host.write(std::string(1 << 20, 'C'));  // refused somewhere on the way
  EXPECT_TRUE(host.closed());
  EXPECT_EQ(guest.counters().bad_hellos.load(), 1U);
  EXPECT_TRUE(no_streams(guest));
}

TEST(VsockHostTest, line_may_come_byte_by_byte) {
  VsockGuest guest;
  HostSocket host = HostSocket::connect(guest.path());
  for (const char byte : std::string("CONNECT 77\n")) {
    ASSERT_TRUE(host.write({&byte, 1}));
    std::this_thread::yield();
  }
  const auto request = guest.driver().receive_content();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->header.dst_port, 77U);
}

TEST(VsockHostTest, client_that_says_nothing_is_closed_at_the_deadline) {
  VsockGuest guest({}, {.hello_max = kSoon});
  HostSocket silent = HostSocket::connect(guest.path());
  HostSocket slow = HostSocket::connect(guest.path());
  ASSERT_TRUE(slow.write("CONN"));
  EXPECT_TRUE(silent.closed());
  EXPECT_TRUE(slow.closed());
  EXPECT_EQ(guest.counters().timeouts.load(), 2U);
  EXPECT_TRUE(no_streams(guest));
}

TEST(VsockHostTest, client_whose_guest_does_not_answer_is_closed_at_the_deadline) {
  VsockGuest guest({}, {.connect_max = kSoon});
  HostSocket host = HostSocket::connect(guest.path());
  ASSERT_TRUE(host.write("CONNECT 1\n"));
  EXPECT_TRUE(host.closed());
  const auto request = guest.driver().receive_content();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->header.op, kRequest);
  EXPECT_TRUE(guest.expect_op(kRst, {.host = request->header.src_port, .guest = 1}));
}

TEST(VsockHostTest, clients_wait_in_the_backlog_while_64_say_nothing) {
  VsockGuest guest({}, {.hellos_max = 4, .hello_max = std::chrono::milliseconds(200)});
  std::vector<HostSocket> silent;
  for (int i = 0; i < 10; ++i) silent.push_back(HostSocket::connect(guest.path()));
  ASSERT_TRUE(eventually([&] { return guest.counters().streams.load() == 4; }));
  HostSocket host = HostSocket::connect(guest.path());
  ASSERT_TRUE(host.write("CONNECT 9\n"));
  // Its turn comes when the silent ones are gone.
  const auto request = guest.driver().receive_content();
  ASSERT_TRUE(request);
  EXPECT_EQ(request->header.dst_port, 9U);
  for (HostSocket& client : silent) EXPECT_TRUE(client.closed());
}

TEST(VsockHostTest, disconnect_before_the_line_leaves_nothing) {
  VsockGuest guest;
  HostSocket::connect(guest.path()).close();
  HostSocket half = HostSocket::connect(guest.path());
  ASSERT_TRUE(half.write("CONNECT"));
  half.close();
  EXPECT_TRUE(eventually([&] { return guest.counters().bad_hellos.load() == 2; }));
  EXPECT_TRUE(no_streams(guest));
  EXPECT_TRUE(guest.driver().drain().empty());
}

TEST(VsockHostTest, disconnect_before_the_guests_answer_resets_the_request) {
  VsockGuest guest;
  HostSocket host = HostSocket::connect(guest.path());
  ASSERT_TRUE(host.write("CONNECT 1\n"));
  const auto request = guest.driver().receive_content();
  ASSERT_TRUE(request);
  host.close();
  const VsockPorts ports{.host = request->header.src_port, .guest = 1};
  EXPECT_TRUE(guest.expect_op(kRst, ports));
  // The answer comes too late.
  ASSERT_TRUE(guest.driver().send(kResponse, ports));
  EXPECT_TRUE(guest.expect_op(kRst, ports));
  EXPECT_TRUE(no_streams(guest));
}

TEST(VsockHostTest, disconnect_of_an_open_stream_is_told_after_its_last_bytes) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  const std::string all(50'000, 'z');
  ASSERT_TRUE(host.write(all));
  host.close();
  std::string got;
  while (got.size() < all.size()) {
    const auto data = guest.driver().receive_content();
    ASSERT_TRUE(data);
    ASSERT_EQ(data->header.op, VIRTIO_VSOCK_OP_RW);
    got += data->payload;
  }
  EXPECT_EQ(got, all);
  EXPECT_TRUE(guest.expect_op(kShutdown, ports, kBoth));
  // What the guest sends now was on its way: no harm.
  ASSERT_TRUE(guest.driver().send_data(ports, "too late"));
  ASSERT_TRUE(guest.driver().send(kShutdown, ports, kBoth));
  EXPECT_TRUE(guest.expect_op(kRst, ports));
  EXPECT_TRUE(no_streams(guest));
}

TEST(VsockHostTest, disconnect_with_unread_bytes_resets_the_stream) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(guest.driver().send_data(ports, "never read"));
  host.close();  // the kernel says ECONNRESET to the other end
  const auto packet = guest.driver().receive_content();
  ASSERT_TRUE(packet);
  EXPECT_EQ(packet->header.op, kRst);
  EXPECT_TRUE(no_streams(guest));
}

TEST(VsockHostTest, disconnect_while_its_bytes_are_buffered_drops_them) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(guest.driver().send_data(ports, std::string(kVsockBufferBytes, 'x')));
  host.close();
  // Reset, or told that nobody reads any more: whichever the device meets first.
  const auto packet = guest.driver().receive_content();
  ASSERT_TRUE(packet);
  EXPECT_THAT(packet->header.op, ::testing::AnyOf(kRst, kShutdown));
  ASSERT_TRUE(guest.driver().send(kRst, ports));
  EXPECT_TRUE(no_streams(guest));
}

TEST(VsockHostTest, disconnect_while_draining_ends_it) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(guest.driver().send_data(ports, std::string(kVsockBufferBytes, 'x')));
  ASSERT_TRUE(guest.driver().send(kShutdown, ports, kBoth));
  (void)guest.driver().drain();
  EXPECT_EQ(guest.counters().streams.load(), 1U);
  host.close();
  EXPECT_TRUE(no_streams(guest));
}

TEST(VsockHostTest, path_that_is_no_socket_refuses_the_guest) {
  VsockGuest guest;
  std::ofstream(guest.path(52)) << "a file";
  std::filesystem::create_directory(guest.path(53));
  const UniqueFd datagram(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = unix_address(guest.path(54));
  ASSERT_EQ(::bind(datagram.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  listen_at(guest.path(55));  // nobody listens any more
  for (const uint32_t port : {52U, 53U, 54U, 55U, 56U}) {
    const VsockPorts ports{.host = port, .guest = 9};
    ASSERT_TRUE(guest.driver().send(kRequest, ports));
    EXPECT_TRUE(guest.expect_op(kRst, ports)) << port;
  }
  EXPECT_EQ(guest.counters().refused.load(), 5U);
  EXPECT_TRUE(no_streams(guest));
}

TEST(VsockHostTest, full_backlog_is_tried_again_and_blocks_nobody) {
  VsockGuest guest;
  const UniqueFd listener = listen_at(guest.path(52), 0);
  const HostSocket first = HostSocket::connect(guest.path(52));  // backlog 0 takes one
  ASSERT_TRUE(guest.driver().send(kRequest, kPorts));
  // Others go on meanwhile.
  VsockPorts ports;
  HostSocket other = guest.open_from_host(ports);
  ASSERT_TRUE(other.write("on"));
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "on");
  (void)HostSocket::accept(listener);
  EXPECT_TRUE(guest.expect_op(kResponse, kPorts));
}

TEST(VsockHostTest, full_backlog_refuses_the_guest_at_the_deadline) {
  VsockGuest guest({}, {.connect_max = kSoon});
  const UniqueFd listener = listen_at(guest.path(52), 0);
  const HostSocket first = HostSocket::connect(guest.path(52));
  ASSERT_TRUE(guest.driver().send(kRequest, kPorts));
  EXPECT_TRUE(guest.expect_op(kRst, kPorts));
  EXPECT_EQ(guest.counters().timeouts.load(), 1U);
}

TEST(VsockHostTest, flooding_host_fills_no_more_than_the_guests_credit) {
  VsockGuest guest({.rx_buffers = 60, .buf_alloc = 10'000});
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  const std::string flood(64 * 1024, 'f');
  while (host.write_some(flood) > 0) continue;
  size_t got = 0;
  for (const auto& packet : guest.driver().drain()) got += packet.payload.size();
  // What was on its way has come; no more does without new credit.
  for (const auto& packet : guest.driver().drain()) got += packet.payload.size();
  EXPECT_EQ(got, 10'000U);
  virtio_vsock_hdr update = guest.driver().header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, ports);
  update.fwd_cnt = 4'000;
  ASSERT_TRUE(guest.driver().send(update));
  while (got < 14'000) {
    const auto packet = guest.driver().receive();
    ASSERT_TRUE(packet);
    got += packet->payload.size();
  }
  EXPECT_EQ(got, 14'000U);
}

TEST(VsockHostTest, host_that_never_reads_holds_no_more_than_the_buffer_and_stops_no_other) {
  VsockGuest guest;
  VsockPorts stuck;
  HostSocket deaf = guest.open_from_host(stuck, 1);
  uint32_t sent = 0;
  uint32_t told = 0;
  const std::string piece(16 * 1024, 'p');
  while (sent - told + piece.size() <= kVsockBufferBytes) {
    ASSERT_TRUE(guest.driver().send_data(stuck, piece));
    sent += static_cast<uint32_t>(piece.size());
    for (const auto& packet : guest.driver().drain()) told = packet.header.fwd_cnt;
  }
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports, 2);
  ASSERT_TRUE(guest.driver().send_data(ports, "through"));
  EXPECT_EQ(host.read(7), "through");
  EXPECT_EQ(deaf.read(sent), std::string(sent, 'p'));  // all is there when it reads at last
}

TEST(VsockHostTest, host_that_closes_its_reading_half_still_sends) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  host.shut(SHUT_RD);
  ASSERT_TRUE(guest.driver().send_data(ports, "nobody reads this"));
  EXPECT_TRUE(guest.expect_op(kShutdown, ports, VIRTIO_VSOCK_SHUTDOWN_RCV));
  ASSERT_TRUE(host.write("still here"));
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "still here");
}

TEST(VsockHostTest, descriptors_that_a_host_program_sends_are_not_taken) {
  VsockGuest guest;
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  const int fd = host.fd();
  const std::array<uint8_t, 2> bytes{'h', 'i'};
  ASSERT_EQ(send_packet(host.fd(), bytes, {&fd, 1}), 2);
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "hi");
  host.close();  // were its end held, this would not be seen
  EXPECT_TRUE(guest.expect_op(kShutdown, ports, kBoth));
}

// Reads end behind a message that carried descriptors, with no event for what lies behind it.
TEST(VsockHostTest, bytes_behind_descriptors_come_and_the_descriptors_are_closed) {
  VsockGuest guest;
  HostSocket host = HostSocket::connect(guest.path());
  ASSERT_TRUE(host.write("CONNECT 5000\n"));
  const auto request = guest.driver().receive_content();
  ASSERT_TRUE(request);
  std::array<int, 2> pipe_ends{};
  ASSERT_EQ(::pipe2(pipe_ends.data(), O_CLOEXEC), 0);
  const UniqueFd sees_the_end(pipe_ends[0]);
  UniqueFd sent(pipe_ends[1]);
  const int fd = sent.get();
  const std::array<uint8_t, 3> bytes{'f', 'd', ' '};
  for (const char* behind : {"one ", "two "}) {
    ASSERT_EQ(send_packet(host.fd(), bytes, {&fd, 1}), 3);
    ASSERT_TRUE(host.write(behind));
  }
  sent.reset();
  // All the events have been when this is answered, and nothing was read yet.
  EXPECT_TRUE(guest.driver().drain().empty());
  ASSERT_TRUE(guest.driver().send(
      kResponse, {.host = request->header.src_port, .guest = request->header.dst_port}));
  std::string got;
  while (got.size() < 14) {
    const auto data = guest.driver().receive_content();
    ASSERT_TRUE(data) << got;
    got += data->payload;
  }
  EXPECT_EQ(got, "fd one fd two ");
  EXPECT_TRUE(HostSocket::wait(sees_the_end.get(), POLLIN)) << "someone holds the other end";
}

TEST(VsockHostTest, a_hundred_clients_at_once_are_served) {
  VsockGuest guest({.queue_size = 256, .rx_buffers = 128});
  std::vector<HostSocket> hosts;
  for (uint32_t i = 0; i < 100; ++i) {
    hosts.push_back(HostSocket::connect(guest.path()));
    ASSERT_TRUE(hosts.back().write(fmt::format("CONNECT {}\n", i)));
    if (i % 50 == 49) {  // the test's backlog is 64
      for (uint32_t k = 0; k < 50; ++k) {
        const auto request = guest.driver().receive_content();
        ASSERT_TRUE(request);
        ASSERT_TRUE(guest.driver().send(
            kResponse, {.host = request->header.src_port, .guest = request->header.dst_port}));
      }
    }
  }
  for (uint32_t i = 0; i < 100; ++i) {
    ASSERT_THAT(hosts[i].read_line(), ::testing::StartsWith("OK "));
    ASSERT_TRUE(hosts[i].write(fmt::format("{:5}", i)));
  }
  std::map<uint32_t, std::string> got;
  for (uint32_t i = 0; i < 100; ++i) {
    const auto data = guest.driver().receive_content();
    ASSERT_TRUE(data);
    got[data->header.dst_port] += data->payload;
  }
  for (uint32_t i = 0; i < 100; ++i) EXPECT_EQ(got[i], fmt::format("{:5}", i));
}

}  // namespace
}  // namespace lethe
