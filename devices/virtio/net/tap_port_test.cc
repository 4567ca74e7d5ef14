// Cards on a tap, in a network namespace of the test's own: offloads, several queues, a tap that
// goes away. The host's side is a packet socket on the tap's interface.
#include "devices/virtio/net/tap_port.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "devices/virtio/net/net_test_util.h"

namespace lethe {
namespace {

constexpr const char* kTap = "lethe-tap";
constexpr uint16_t kEtherType = 0x88B5;  // for local experiments (IEEE 802)
constexpr std::chrono::milliseconds kSoon{50};

void write_file(const char* path, const std::string& text) {
  const UniqueFd fd(::open(path, O_WRONLY | O_CLOEXEC));
  (void)!::write(fd.get(), text.data(), text.size());
}

// The thread that runs the tests moves into namespaces of its own; devices' threads, made by it,
// are there too. Empty: done; else why not.
std::string enter_own_network() {
  if (::unshare(CLONE_NEWNET) != 0) return "unshare: " + errno_text(errno);
  const UniqueFd tun(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  if (!tun.valid()) return "/dev/net/tun: " + errno_text(errno);
  // It would send frames of its own.
  write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
  return {};
}

class Tap : public testing::Test {
 protected:
  void SetUp() override {
    x_home.reset(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    const std::string why = enter_own_network();
    if (!why.empty())
      GTEST_SKIP() << "SKIPPED: taps need a network namespace and /dev/net/tun (root): " << why;
  }
  void TearDown() override { (void)::setns(x_home.get(), CLONE_NEWNET); }

  static NetPorts open(uint16_t queues = 1) {
    auto ports = TapPort::open(kTap, queues);
    EXPECT_TRUE(ports) << ports.error().text;
    return ports ? std::move(*ports) : NetPorts();
  }
  // The interface up, and the host's socket on it.
  void bring_up() {
    const UniqueFd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    std::string(kTap).copy(request.ifr_name, IFNAMSIZ - 1);
    request.ifr_flags = IFF_UP;
    ASSERT_EQ(::ioctl(control.get(), SIOCSIFFLAGS, &request), 0) << errno_text(errno);
    ASSERT_EQ(::ioctl(control.get(), SIOCGIFINDEX, &request), 0);
    x_socket.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(kEtherType)));
    ASSERT_TRUE(x_socket.valid()) << errno_text(errno);
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(kEtherType);
    address.sll_ifindex = request.ifr_ifindex;
    // SAFETY: what bind(2) takes.
    ASSERT_EQ(::bind(x_socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  static Bytes ether_frame(size_t size, uint32_t seed) {
    Bytes frame = make_frame(size, seed);
    std::fill_n(frame.begin(), 6, 0xFF);
    frame[6] = 0x02;
    frame[12] = kEtherType >> 8;
    frame[13] = kEtherType & 0xFF;
    return frame;
  }
  std::optional<Bytes> host_receive(std::chrono::milliseconds patience = FakeTransport::kPatience) {
    pollfd ready{.fd = x_socket.get(), .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, static_cast<int>(patience.count())) != 1) return std::nullopt;
    Bytes frame(70'000);
    const ssize_t got = ::recv(x_socket.get(), frame.data(), frame.size(), 0);
    if (got < 0) return std::nullopt;
    frame.resize(static_cast<size_t>(got));
    return frame;
  }
  void host_send(const Bytes& frame) {
    ASSERT_EQ(::send(x_socket.get(), frame.data(), frame.size(), 0),
              static_cast<ssize_t>(frame.size()))
        << errno_text(errno);
  }

  UniqueFd x_home;
  UniqueFd x_socket;
};

TEST_F(Tap, frames_pass_both_ways) {
  NetGuest guest(open());
  ASSERT_NO_FATAL_FAILURE(bring_up());
  guest.post(60, 2048);
  for (const size_t size : {60, 1000, 1514}) {
    const Bytes frame = ether_frame(size, static_cast<uint32_t>(size));
    ASSERT_TRUE(guest.send(frame, {}, 3));
    EXPECT_EQ(host_receive(), frame);
    host_send(frame);
    const auto got = guest.receive();
    ASSERT_TRUE(got);
    EXPECT_EQ(got->bytes, frame);
    EXPECT_EQ(got->header.num_buffers, 1);
  }
}

TEST_F(Tap, offers_what_the_kernel_does_for_it) {
  NetGuest guest(open());
  const uint64_t offered = guest.device().device_features();
  for (const unsigned feature :
       {VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS})
    EXPECT_NE(offered & net_bit(feature), 0u) << feature;
  EXPECT_EQ(offered & net_bit(VIRTIO_NET_F_MQ), 0u);
}

// An IPv4/TCP segment of `payload` bytes with its pseudo header's sum in the checksum's place.
Bytes tcp_frame(size_t payload) {
  Bytes frame(54 + payload);
  const uint8_t head[] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2, 1, 1, 1, 1, 1, 8, 0, 0x45, 0};
  std::copy(std::begin(head), std::end(head), frame.begin());
  const auto put = [&](size_t at, size_t value) {
    frame[at] = static_cast<uint8_t>(value >> 8);
    frame[at + 1] = static_cast<uint8_t>(value);
  };
  put(16, 40 + payload);
  frame[22] = 64;
  frame[23] = 6;
  const uint8_t addresses[] = {192, 0, 2, 1, 192, 0, 2, 2};
  std::copy(std::begin(addresses), std::end(addresses), frame.begin() + 26);
  put(34, 1000);
  put(36, 2000);
  frame[46] = 0x50;
  frame[47] = 0x10;
  uint32_t sum = 6 + static_cast<uint32_t>(20 + payload);
  for (size_t i = 26; i < 34; i += 2) sum += static_cast<uint32_t>(frame[i] << 8 | frame[i + 1]);
  while (sum >> 16 != 0) sum = (sum & 0xFFFF) + (sum >> 16);
  put(50, sum);
  return frame;
}

TEST_F(Tap, segments_and_checksums_left_to_the_host_pass) {
  NetGuest guest(open());
  ASSERT_NO_FATAL_FAILURE(bring_up());
  virtio_net_hdr_v1 header{};
  header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  header.csum_start = 34;
  header.csum_offset = 16;
  header.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
  header.gso_size = 1448;
  header.hdr_len = 54;
  EXPECT_TRUE(guest.send(tcp_frame(20'000), header, 4));
  EXPECT_TRUE(guest.send(tcp_frame(65'480), header, 4));
  EXPECT_EQ(guest.counters().tx_frames, 2u);
  EXPECT_EQ(guest.counters().tx_failed, 0u);
  // What the kernel itself finds wrong costs that frame only.
  header.gso_type = VIRTIO_NET_HDR_GSO_TCPV6;
  EXPECT_TRUE(guest.send(tcp_frame(20'000), header));
  header.gso_type = VIRTIO_NET_HDR_GSO_NONE;
  header.csum_start = 19'000;
  EXPECT_TRUE(guest.send(tcp_frame(20'000), header));
  const Bytes frame = ether_frame(60, 1);
  EXPECT_TRUE(guest.send(frame));
  EXPECT_EQ(host_receive(), frame);
}

TEST_F(Tap, guest_offloads_are_switched_by_command) {
  NetGuest guest(open());
  const auto set = [&](uint64_t offloads) {
    Bytes data(8);
    std::memcpy(data.data(), &offloads, sizeof offloads);
    return guest.command(VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, data);
  };
  EXPECT_EQ(set(0), VIRTIO_NET_OK);
  EXPECT_EQ(set(net_bit(VIRTIO_NET_F_GUEST_CSUM)), VIRTIO_NET_OK);
  EXPECT_EQ(set(net_bit(VIRTIO_NET_F_GUEST_CSUM) | net_bit(VIRTIO_NET_F_GUEST_TSO4)),
            VIRTIO_NET_OK);
  EXPECT_EQ(set(net_bit(VIRTIO_NET_F_MRG_RXBUF)), VIRTIO_NET_ERR);
  EXPECT_EQ(set(net_bit(VIRTIO_NET_F_GUEST_UFO)), VIRTIO_NET_ERR);
}

TEST_F(Tap, drops_what_the_guests_buffers_do_not_hold) {
  NetGuest guest(open(), {}, ~(net_bit(VIRTIO_NET_F_MRG_RXBUF)));
  ASSERT_NO_FATAL_FAILURE(bring_up());
  guest.post(4, 512);
  host_send(ether_frame(1514, 1));
  const Bytes frame = ether_frame(500, 2);
  host_send(frame);
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, frame);
  EXPECT_EQ(guest.counters().rx_too_large, 1u);
}

TEST_F(Tap, several_queues_are_used_when_the_driver_asks) {
  NetGuest guest(open(4), {.pairs = 4});
  ASSERT_NO_FATAL_FAILURE(bring_up());
  EXPECT_EQ(guest.transport().queues(), 9);
  for (uint16_t pair = 0; pair < 4; ++pair) guest.post(60, 2048, pair);
  const auto set_pairs = [&](uint16_t pairs) {
    return guest.command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
                         {static_cast<uint8_t>(pairs), static_cast<uint8_t>(pairs >> 8)});
  };
  // At first one.
  const Bytes frame = ether_frame(100, 1);
  ASSERT_TRUE(guest.send(frame));
  EXPECT_EQ(host_receive(), frame);
  for (const uint16_t bad : std::vector<uint16_t>{0, 5, 0x8000, 0xFFFF})
    EXPECT_EQ(set_pairs(bad), VIRTIO_NET_ERR);
  ASSERT_EQ(set_pairs(4), VIRTIO_NET_OK);
  for (uint16_t pair = 0; pair < 4; ++pair) {
    const Bytes another = ether_frame(100, 10u + pair);
    ASSERT_TRUE(guest.send(another, {}, 1, pair)) << pair;
    EXPECT_EQ(host_receive(), another);
  }
  // Back to one: what comes in comes to the first.
  ASSERT_EQ(set_pairs(1), VIRTIO_NET_OK);
  for (uint32_t i = 0; i < 8; ++i) host_send(ether_frame(100 + i, 20 + i));
  for (uint32_t i = 0; i < 8; ++i) {
    const auto got = guest.receive();
    ASSERT_TRUE(got);
    EXPECT_EQ(got->bytes, ether_frame(100 + i, 20 + i));
  }
}

TEST_F(Tap, a_driver_without_mq_finds_its_control_queue) {
  NetGuest guest(open(2), {.pairs = 2}, ~net_bit(VIRTIO_NET_F_MQ));
  const FakeBuffer buffers[] = {
      {guest.heap().put(Bytes{VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, 1}), 3, false},
      {guest.heap().alloc(1), 1, true}};
  EXPECT_EQ(guest.transport().request(2, buffers), 1u);
  EXPECT_EQ(guest.counters().commands, 1u);
}

TEST_F(Tap, an_adopted_tap_without_headers_has_no_offloads) {
  UniqueFd tap(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  ifreq request{};
  std::string(kTap).copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  ASSERT_EQ(::ioctl(tap.get(), TUNSETIFF, &request), 0);
  auto port = TapPort::adopt(std::move(tap));
  ASSERT_TRUE(port) << port.error().text;
  EXPECT_EQ((*port)->offloads(), 0u);
  NetPorts ports;
  ports.push_back(std::move(*port));
  NetGuest guest(std::move(ports));
  ASSERT_NO_FATAL_FAILURE(bring_up());
  guest.post(4, 2048);
  const Bytes frame = ether_frame(300, 1);
  ASSERT_TRUE(guest.send(frame));
  EXPECT_EQ(host_receive(), frame);
  host_send(frame);
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_EQ(got->bytes, frame);
}

TEST_F(Tap, says_what_is_wrong_with_a_descriptor_or_a_name) {
  EXPECT_THAT(TapPort::adopt(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))).error().text,
              testing::HasSubstr("is no tap"));
  const auto first = open();
  EXPECT_THAT(TapPort::open(kTap, 1).error().text, testing::HasSubstr("another program has it"));
  EXPECT_THAT(TapPort::open(kTap, 2).error().text, testing::HasSubstr("multi_queue"));
}

// The kernel does not always wake who waits for it: the next frame finds it.
TEST_F(Tap, a_tap_that_is_deleted_takes_the_link_down) {
  std::atomic<int> lost{0};
  NetGuest guest(open(), {.on_lost = [&] { ++lost; }});
  ASSERT_NO_FATAL_FAILURE(bring_up());
  guest.post(4, 2048);
  EXPECT_FALSE(guest.receive(kSoon));
  ASSERT_EQ(std::system("ip link del lethe-tap 2>/dev/null"), 0);
  EXPECT_TRUE(guest.send(ether_frame(60, 1)));
  EXPECT_TRUE(eventually([&] { return lost == 1; }));
  EXPECT_FALSE(guest.device().link_up());
}

}  // namespace
}  // namespace lethe
