// virtio-vsock: guests that break the rules.
#include <gmock/gmock.h>

#include "devices/virtio/vsock/vsock_test_util.h"

namespace lethe {
namespace {

constexpr uint16_t kRequest = VIRTIO_VSOCK_OP_REQUEST;
constexpr uint16_t kRst = VIRTIO_VSOCK_OP_RST;
constexpr uint16_t kRw = VIRTIO_VSOCK_OP_RW;
constexpr uint16_t kShutdown = VIRTIO_VSOCK_OP_SHUTDOWN;
constexpr VsockPorts kUnknown{.host = 777, .guest = 888};

class VsockHostileGuest : public ::testing::Test {
 protected:
  VsockGuest x_guest;
  VsockPorts x_ports;
  FakeVsockDriver& driver() { return x_guest.driver(); }
  // The stream is reset on both sides, and the device goes on with others.
  void expect_stream_reset(HostSocket& host) {
    EXPECT_TRUE(x_guest.expect_op(kRst, x_ports));
    EXPECT_TRUE(host.closed());
    EXPECT_EQ(x_guest.counters().streams.load(), 0U);
    expect_alive();
  }
  void expect_alive() {
    VsockPorts ports;
    HostSocket host = x_guest.open_from_host(ports, 6000);
    EXPECT_TRUE(driver().send_data(ports, "alive"));
    EXPECT_EQ(host.read(5), "alive");
    EXPECT_EQ(driver().transport().needs_reset_count(), 0U);
  }
};

TEST_F(VsockHostileGuest, sending_beyond_its_credit_is_reset) {
  HostSocket host = x_guest.open_from_host(x_ports);
  // The credit is used up while the host reads nothing; not a byte more is taken.
  std::string piece(32 * 1024, 'x');
  uint32_t told = 0;
  uint32_t sent = 0;
  while (sent - told < kVsockBufferBytes) {
    ASSERT_TRUE(driver().send_data(x_ports, piece));
    sent += static_cast<uint32_t>(piece.size());
    for (const auto& packet : driver().drain()) told = packet.header.fwd_cnt;
  }
  EXPECT_EQ(x_guest.counters().credit_broken.load(), 0U);
  EXPECT_EQ(x_guest.counters().streams.load(), 1U);
  ASSERT_TRUE(driver().send_data(x_ports, "x"));
  EXPECT_TRUE(x_guest.expect_op(kRst, x_ports));
  EXPECT_EQ(x_guest.counters().credit_broken.load(), 1U);
  EXPECT_EQ(x_guest.counters().streams.load(), 0U);
  expect_alive();
}

TEST_F(VsockHostileGuest, one_packet_larger_than_all_credit_is_reset) {
  HostSocket host = x_guest.open_from_host(x_ports);
  ASSERT_TRUE(driver().send_data(x_ports, std::string(kVsockBufferBytes + 1, 'x')));
  expect_stream_reset(host);
  EXPECT_EQ(x_guest.counters().credit_broken.load(), 1U);
}

TEST_F(VsockHostileGuest, counting_more_bytes_than_it_was_sent_is_reset) {
  HostSocket host = x_guest.open_from_host(x_ports);
  virtio_vsock_hdr header = driver().header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, x_ports);
  header.fwd_cnt = 1;
  ASSERT_TRUE(driver().send(header));
  expect_stream_reset(host);
  EXPECT_EQ(x_guest.counters().credit_broken.load(), 1U);
}

TEST_F(VsockHostileGuest, data_after_it_shut_down_sending_is_reset) {
  HostSocket host = x_guest.open_from_host(x_ports);
  ASSERT_TRUE(driver().send(kShutdown, x_ports, VIRTIO_VSOCK_SHUTDOWN_SEND));
  ASSERT_TRUE(driver().send_data(x_ports, "more"));
  EXPECT_TRUE(x_guest.expect_op(kRst, x_ports));
  EXPECT_EQ(host.read(10), "");
  EXPECT_EQ(x_guest.counters().stray.load(), 1U);
}

TEST_F(VsockHostileGuest, data_for_a_closed_stream_is_answered_by_a_reset) {
  HostSocket host = x_guest.open_from_host(x_ports);
  ASSERT_TRUE(driver().send(kRst, x_ports));
  EXPECT_TRUE(host.closed());
  ASSERT_TRUE(driver().send_data(x_ports, "late"));
  EXPECT_TRUE(x_guest.expect_op(kRst, x_ports));
}

TEST_F(VsockHostileGuest, every_op_on_an_unknown_stream_is_answered_by_a_reset_but_a_reset) {
  for (const uint16_t op : {uint16_t{2}, uint16_t{4}, uint16_t{5}, uint16_t{6}, uint16_t{7}}) {
    ASSERT_TRUE(driver().send(op, kUnknown));
    EXPECT_TRUE(x_guest.expect_op(kRst, kUnknown)) << op;
  }
  ASSERT_TRUE(driver().send(kRst, kUnknown));
  EXPECT_TRUE(driver().drain().empty());
  EXPECT_EQ(x_guest.counters().stray.load(), 7U);  // drain()'s own one, too
}

TEST_F(VsockHostileGuest, flood_of_requests_stops_at_the_limit_of_streams) {
  VsockGuest guest({}, {.streams_max = 20});
  const UniqueFd listener = listen_at(guest.path(52), 100);
  int opened = 0;
  int refused = 0;
  for (uint32_t i = 0; i < 50; ++i) {
    ASSERT_TRUE(guest.driver().send(kRequest, {.host = 52, .guest = i}));
    const auto answer = guest.driver().receive_content();
    ASSERT_TRUE(answer);
    (answer->header.op == kRst ? refused : opened)++;
  }
  EXPECT_EQ(opened, 20);
  EXPECT_EQ(refused, 30);
  EXPECT_EQ(guest.counters().streams.load(), 20U);
  // One that ends makes room.
  ASSERT_TRUE(guest.driver().send(kRst, {.host = 52, .guest = 0}));
  ASSERT_TRUE(guest.driver().send(kRequest, {.host = 52, .guest = 60}));
  EXPECT_TRUE(guest.expect_op(VIRTIO_VSOCK_OP_RESPONSE, {.host = 52, .guest = 60}));
}

TEST_F(VsockHostileGuest, request_for_ports_in_use_ends_that_stream) {
  HostSocket host = x_guest.open_from_host(x_ports);
  ASSERT_TRUE(driver().send(kRequest, x_ports));
  expect_stream_reset(host);
}

TEST_F(VsockHostileGuest, response_to_an_open_stream_ends_it) {
  HostSocket host = x_guest.open_from_host(x_ports);
  ASSERT_TRUE(driver().send(VIRTIO_VSOCK_OP_RESPONSE, x_ports));
  expect_stream_reset(host);
}

TEST_F(VsockHostileGuest, data_before_its_response_is_reset) {
  HostSocket host = HostSocket::connect(x_guest.path());
  ASSERT_TRUE(host.write("CONNECT 1\n"));
  const auto request = driver().receive();
  ASSERT_TRUE(request);
  x_ports = {.host = request->header.src_port, .guest = 1};
  ASSERT_TRUE(driver().send_data(x_ports, "early"));
  expect_stream_reset(host);
}

TEST_F(VsockHostileGuest, odd_shutdown_flags_mean_only_what_is_known) {
  HostSocket host = x_guest.open_from_host(x_ports);
  ASSERT_TRUE(driver().send(kShutdown, x_ports, 0));
  ASSERT_TRUE(driver().send(kShutdown, x_ports, 0xffff'fffc));
  ASSERT_TRUE(driver().send_data(x_ports, "on"));
  EXPECT_EQ(host.read(2), "on");
  // One by one is as good as both at once; again is nothing new.
  ASSERT_TRUE(driver().send(kShutdown, x_ports, VIRTIO_VSOCK_SHUTDOWN_RCV));
  ASSERT_TRUE(driver().send(kShutdown, x_ports, VIRTIO_VSOCK_SHUTDOWN_RCV));
  ASSERT_TRUE(driver().send(kShutdown, x_ports, VIRTIO_VSOCK_SHUTDOWN_SEND));
  expect_stream_reset(host);
}

TEST_F(VsockHostileGuest, header_length_of_4_gib_ends_the_stream) {
  HostSocket host = x_guest.open_from_host(x_ports);
  virtio_vsock_hdr header = driver().header(kRw, x_ports);
  header.len = 0xffff'ffff;
  ASSERT_TRUE(driver().send(header, "ten bytes."));
  expect_stream_reset(host);
  EXPECT_EQ(x_guest.counters().malformed.load(), 1U);
}

TEST_F(VsockHostileGuest, length_beyond_the_chain_by_one_byte_ends_the_stream) {
  HostSocket host = x_guest.open_from_host(x_ports);
  virtio_vsock_hdr header = driver().header(kRw, x_ports);
  header.len = 11;
  ASSERT_TRUE(driver().send(header, "ten bytes."));
  expect_stream_reset(host);
}

TEST_F(VsockHostileGuest, length_below_the_chains_cuts_it) {
  HostSocket host = x_guest.open_from_host(x_ports);
  virtio_vsock_hdr header = driver().header(kRw, x_ports);
  header.len = 3;
  ASSERT_TRUE(driver().send(header, "ten bytes."));
  header.len = 0;
  ASSERT_TRUE(driver().send(header, "nothing of it"));
  ASSERT_TRUE(driver().send_data(x_ports, "|"));
  EXPECT_EQ(host.read(4), "ten|");
}

TEST_F(VsockHostileGuest, payload_of_an_op_without_one_is_malformed) {
  HostSocket host = x_guest.open_from_host(x_ports);
  virtio_vsock_hdr header = driver().header(VIRTIO_VSOCK_OP_CREDIT_UPDATE, x_ports);
  header.len = 4;
  ASSERT_TRUE(driver().send(header, "four"));
  expect_stream_reset(host);
  EXPECT_EQ(x_guest.counters().malformed.load(), 1U);
}

TEST_F(VsockHostileGuest, packet_shorter_than_a_header_is_dropped) {
  const std::array<uint8_t, 43> bytes{};
  for (const uint32_t size : {1U, 42U, 43U}) {
    ASSERT_TRUE(driver().send_raw({bytes.data(), size}, {&size, 1}));
  }
  EXPECT_EQ(x_guest.counters().malformed.load(), 3U);
  EXPECT_TRUE(driver().drain().empty());
  expect_alive();
}

TEST_F(VsockHostileGuest, header_and_payload_split_over_many_descriptors_are_one_packet) {
  HostSocket host = x_guest.open_from_host(x_ports);
  std::string all;
  for (int i = 0; i < 100; ++i) all += static_cast<char>('a' + i % 26);
  virtio_vsock_hdr header = driver().header(kRw, x_ports);
  header.len = 100;
  std::vector<uint8_t> bytes(sizeof header + 100);
  std::memcpy(bytes.data(), &header, sizeof header);
  std::copy(all.begin(), all.end(), bytes.begin() + sizeof header);
  // A byte each, up to what the queue allows; the last one has the rest.
  std::vector<uint32_t> sizes(63, 1);
  sizes.push_back(144 - 63);
  ASSERT_TRUE(driver().send_raw(bytes, sizes));
  EXPECT_EQ(host.read(100), all);
  sizes = {43, 2, 99};
  ASSERT_TRUE(driver().send_raw(bytes, sizes));
  EXPECT_EQ(host.read(100), all);
}

TEST_F(VsockHostileGuest, header_for_the_guest_may_be_split_over_many_descriptors) {
  VsockGuest guest({.rx_split = true});
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(host.write("in pieces"));
  const auto data = guest.driver().receive_content();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "in pieces");
}

TEST_F(VsockHostileGuest, buffers_too_small_for_a_header_are_given_back_empty) {
  VsockGuest guest({.rx_buffers = 0});
  FakeDriver& raw = guest.driver().transport().driver(kVsockRx);
  HostSocket host = HostSocket::connect(guest.path());
  ASSERT_TRUE(host.write("CONNECT 1\n"));
  ASSERT_TRUE(eventually([&] { return guest.counters().streams.load() == 1; }));
  const GuestAddr at = guest.driver().transport().heap().alloc(64);
  for (const uint32_t size : {1U, 43U}) {
    const std::array<FakeBuffer, 1> buffer{{{at, size, true}}};
    ASSERT_TRUE(raw.add(buffer));
    guest.driver().transport().kick_if_wanted(kVsockRx);
    const auto used = raw.wait_used(guest.driver().transport().interrupt(kVsockRx),
                                    deadline_in(FakeTransport::kPatience));
    ASSERT_TRUE(used);
    EXPECT_EQ(used->written, 0U);
  }
  EXPECT_EQ(guest.counters().small_buffers.load(), 2U);
  // One that holds just the header carries the request.
  const std::array<FakeBuffer, 1> buffer{{{at, 44, true}}};
  ASSERT_TRUE(raw.add(buffer));
  guest.driver().transport().kick_if_wanted(kVsockRx);
  const auto used = raw.wait_used(guest.driver().transport().interrupt(kVsockRx),
                                  deadline_in(FakeTransport::kPatience));
  ASSERT_TRUE(used);
  EXPECT_EQ(used->written, 44U);
}

TEST_F(VsockHostileGuest, buffers_of_a_header_only_carry_no_data_and_cost_no_bytes) {
  VsockGuest guest({.rx_buffers = 8, .rx_bytes = 1});
  VsockPorts ports;
  HostSocket host = guest.open_from_host(ports);
  ASSERT_TRUE(host.write("abc"));
  std::string got;
  while (got.size() < 3) {
    const auto data = guest.driver().receive_content();
    ASSERT_TRUE(data);
    EXPECT_EQ(data->header.len, 1U);
    got += data->payload;
  }
  EXPECT_EQ(got, "abc");
}

TEST_F(VsockHostileGuest, wrong_cids_are_dropped_and_counted) {
  for (const auto& [from, to] : {std::pair<uint64_t, uint64_t>{4, 2},
                                 {2, 2},
                                 {3, 3},
                                 {3, 1},
                                 {3, uint64_t{1} << 32 | 2},
                                 {uint64_t{1} << 32 | 3, 2}}) {
    virtio_vsock_hdr header = driver().header(kRequest, kUnknown);
    header.src_cid = from;
    header.dst_cid = to;
    ASSERT_TRUE(driver().send(header));
  }
  EXPECT_EQ(x_guest.counters().malformed.load(), 6U);
  EXPECT_TRUE(driver().drain().empty());
  EXPECT_EQ(x_guest.counters().streams.load(), 0U);
}

// 5.10.6.4.2: it is answered.
TEST_F(VsockHostileGuest, unknown_type_is_counted_and_answered_by_a_reset_of_that_type) {
  for (const uint16_t type : {uint16_t{0}, uint16_t{2}, uint16_t{0xffff}}) {
    virtio_vsock_hdr header = driver().header(kRequest, kUnknown);
    header.type = type;
    ASSERT_TRUE(driver().send(header));
    const auto answer = driver().receive();
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->header.op, kRst);
    EXPECT_EQ(answer->header.type, type);
    header.op = kRst;
    ASSERT_TRUE(driver().send(header));
  }
  EXPECT_TRUE(driver().drain().empty());
  EXPECT_EQ(x_guest.counters().malformed.load(), 6U);
}

TEST_F(VsockHostileGuest, unknown_op_ends_its_stream) {
  HostSocket host = x_guest.open_from_host(x_ports);
  ASSERT_TRUE(driver().send(8, kUnknown));
  ASSERT_TRUE(driver().send(0, kUnknown));
  EXPECT_TRUE(driver().drain().empty());
  ASSERT_TRUE(driver().send(0xffff, x_ports));
  expect_stream_reset(host);
  EXPECT_EQ(x_guest.counters().malformed.load(), 3U);
}

TEST_F(VsockHostileGuest, packets_are_left_in_the_queue_while_256_resets_wait) {
  VsockGuest guest({.queue_size = 256, .rx_buffers = 4});
  FakeVsockDriver& flooder = guest.driver();
  flooder.hold_rx();
  const std::array<uint32_t, 1> size{sizeof(virtio_vsock_hdr)};
  int sent = 0;
  // 4 answers have a buffer, 256 wait; then no packet is taken.
  for (; sent < 1000; ++sent) {
    const virtio_vsock_hdr header = flooder.header(kRw, kUnknown);
    if (!flooder.send_raw({reinterpret_cast<const uint8_t*>(&header), sizeof header}, size,
                          std::chrono::milliseconds(sent < 256 ? 10'000 : 200)))
      break;
  }
  EXPECT_GE(sent, 256);
  EXPECT_LE(sent, 256 + 4);
  // Buffers let it go on, and no answer is lost.
  flooder.refill();
  for (int i = 0; i < sent + 1; ++i) {
    const auto answer = flooder.receive();
    ASSERT_TRUE(answer) << i;
    EXPECT_EQ(answer->header.op, kRst);
  }
  EXPECT_EQ(guest.counters().resets_lost.load(), 0U);
}

TEST_F(VsockHostileGuest, zero_credit_holds_data_back_and_is_asked_once) {
  HostSocket host = HostSocket::connect(x_guest.path());
  ASSERT_TRUE(host.write("CONNECT 1\n"));
  const auto request = driver().receive();
  ASSERT_TRUE(request);
  x_ports = {.host = request->header.src_port, .guest = 1};
  virtio_vsock_hdr response = driver().header(VIRTIO_VSOCK_OP_RESPONSE, x_ports);
  response.buf_alloc = 0;
  ASSERT_TRUE(driver().send(response));
  ASSERT_EQ(host.read_line().substr(0, 3), "OK ");
  ASSERT_TRUE(host.write("wait"));
  const auto ask = driver().receive();
  ASSERT_TRUE(ask);
  EXPECT_EQ(ask->header.op, VIRTIO_VSOCK_OP_CREDIT_REQUEST);
  EXPECT_TRUE(driver().drain().empty());
  response.op = VIRTIO_VSOCK_OP_CREDIT_UPDATE;
  response.buf_alloc = 2;
  ASSERT_TRUE(driver().send(response));
  const auto data = driver().receive();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->payload, "wa");  // no byte more than the credit
}

TEST_F(VsockHostileGuest, credit_request_is_answered) {
  HostSocket host = x_guest.open_from_host(x_ports);
  ASSERT_TRUE(driver().send(VIRTIO_VSOCK_OP_CREDIT_REQUEST, x_ports));
  const auto answer = driver().receive();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->header.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
  EXPECT_EQ(answer->header.buf_alloc, kVsockBufferBytes);
}

TEST_F(VsockHostileGuest, broken_transmit_ring_needs_a_reset_which_heals) {
  HostSocket host = x_guest.open_from_host(x_ports);
  driver().transport().driver(kVsockTx).raw_publish(9999);
  driver().transport().kick(kVsockTx);
  EXPECT_TRUE(driver().transport().wait_needs_reset());
  driver().reset();
  EXPECT_TRUE(host.closed());
  driver().start();
  expect_alive();
}

TEST_F(VsockHostileGuest, broken_receive_ring_needs_a_reset_which_heals) {
  VsockGuest guest({.rx_buffers = 4});
  HostSocket host = guest.open_from_host(x_ports);
  guest.driver().transport().driver(kVsockRx).raw_publish(9999);
  ASSERT_TRUE(host.write(std::string(30'000, 'x')));  // more than the 4 buffers before it hold
  EXPECT_TRUE(guest.driver().transport().wait_needs_reset());
  guest.driver().reset();
  EXPECT_TRUE(host.closed());
  guest.driver().start();
  host = guest.open_from_host(x_ports);
  EXPECT_EQ(guest.driver().transport().needs_reset_count(), 0U);
}

TEST_F(VsockHostileGuest, event_buffer_too_small_is_given_back_and_the_event_waits) {
  // The first one, of the right size, is used up.
  StateReader nothing({});
  ASSERT_TRUE(x_guest.device().restore(nothing));
  ASSERT_TRUE(driver().wait_event());
  ASSERT_TRUE(x_guest.device().restore(nothing));
  driver().give_event_buffer(3);
  EXPECT_FALSE(driver().wait_event());  // used with nothing in it
  EXPECT_EQ(x_guest.counters().small_buffers.load(), 1U);
  driver().give_event_buffer();
  EXPECT_EQ(driver().wait_event(), std::optional<uint32_t>(0));
}

}  // namespace
}  // namespace lethe
