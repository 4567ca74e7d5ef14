// The control queue, and what a snapshot keeps of it.
#include "devices/virtio/net/net_control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "devices/virtio/net/net_test_util.h"

namespace lethe {
namespace {

constexpr int kOk = VIRTIO_NET_OK;
constexpr int kError = VIRTIO_NET_ERR;
constexpr MacAddress kOther{0x02, 9, 8, 7, 6, 5};

Bytes bytes_of(const MacAddress& mac) { return {mac.begin(), mac.end()}; }
Bytes table(uint32_t unicast, uint32_t multicast) {
  Bytes data;
  for (const uint32_t entries : {unicast, multicast}) {
    for (unsigned i = 0; i < 4; ++i) data.push_back(static_cast<uint8_t>(entries >> (8 * i)));
    data.resize(data.size() + entries * 6);
  }
  return data;
}

class NetControl : public testing::Test {
 protected:
  MacAddress mac() { return guest.device().mac(); }
  StreamPeer peer;
  NetGuest guest{peer.ports()};
};

TEST_F(NetControl, sets_the_mac_address) {
  EXPECT_EQ(guest.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, bytes_of(kOther)),
            kOk);
  EXPECT_TRUE(std::equal(kOther.begin(), kOther.end(), guest.config().mac));
  EXPECT_EQ(mac(), kOther);
  guest.transport().reset();
  EXPECT_EQ(mac(), NetGuest::kMac) << "a reset gives the old one back";
}

TEST_F(NetControl, refuses_mac_addresses_that_are_none) {
  for (const MacAddress& bad : {MacAddress{}, MacAddress{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF},
                                MacAddress{0x01, 0, 0x5E, 0, 0, 1}})
    EXPECT_EQ(guest.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, bytes_of(bad)),
              kError);
  EXPECT_EQ(mac(), NetGuest::kMac);
}

TEST_F(NetControl, takes_receive_modes_and_filter_tables) {
  for (const uint8_t command : Bytes{VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_RX_ALLMULTI})
    for (const uint8_t on : Bytes{0, 1})
      EXPECT_EQ(guest.command(VIRTIO_NET_CTRL_RX, command, {on}), kOk);
  for (const uint32_t entries : {0u, 1u, 64u, 1000u})
    EXPECT_EQ(guest.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET,
                            table(entries, entries + 1), 3),
              kOk);
  EXPECT_EQ(guest.counters().commands, 8u);
  EXPECT_EQ(guest.counters().commands_refused, 0u);
}

TEST_F(NetControl, refuses_truncated_and_overlong_commands) {
  Bytes lying = table(2, 0);
  lying[0] = 200;  // more than there is
  Bytes huge = table(0, 0);
  huge[0] = huge[1] = huge[2] = huge[3] = 0xFF;
  const struct {
    uint8_t type;
    uint8_t command;
    Bytes data;
  } kBad[] = {
      {VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, {}},
      {VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, {1, 1}},
      {VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, {2, 0, 0, 0, 1}},
      {VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, {2, 0, 0, 0, 1, 1, 1}},
      {VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, {}},
      {VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, {0, 0, 0, 0}},
      {VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, lying},
      {VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, huge},
  };
  for (const auto& bad : kBad) EXPECT_EQ(guest.command(bad.type, bad.command, bad.data), kError);
  EXPECT_EQ(guest.raw_command({}), kError);
  EXPECT_EQ(guest.raw_command({VIRTIO_NET_CTRL_RX}), kError);
  EXPECT_EQ(guest.counters().commands_refused, std::size(kBad) + 2);
}

TEST_F(NetControl, refuses_unknown_commands_and_those_not_negotiated) {
  for (int type = 0; type < 256; ++type) {
    if (type != VIRTIO_NET_CTRL_MAC && type != VIRTIO_NET_CTRL_RX &&
        type != VIRTIO_NET_CTRL_ANNOUNCE)
      EXPECT_EQ(guest.command(static_cast<uint8_t>(type), 0, {1, 0}), kError) << type;
    EXPECT_EQ(guest.command(static_cast<uint8_t>(type), 99, {1}), kError) << type;
  }
  // A stream has neither several pairs nor offloads.
  EXPECT_EQ(guest.command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, {1, 0}), kError);
  EXPECT_EQ(
      guest.command(VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, Bytes(8)),
      kError);
}

TEST_F(NetControl, runs_no_command_whose_status_has_no_place) {
  Bytes raw = {VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET};
  raw.insert(raw.end(), kOther.begin(), kOther.end());
  const FakeBuffer buffer{guest.heap().put(raw), static_cast<uint32_t>(raw.size()), false};
  EXPECT_EQ(guest.transport().request(2, {&buffer, 1}), 0u);
  EXPECT_EQ(mac(), NetGuest::kMac);
  EXPECT_EQ(guest.counters().commands_refused, 1u);
}

TEST_F(NetControl, serves_more_commands_than_a_turn_has) {
  std::vector<uint16_t> heads;
  const GuestAddr command = guest.heap().put(Bytes{VIRTIO_NET_CTRL_RX, 0, 1});
  for (int i = 0; i < 32; ++i) {
    const FakeBuffer buffers[] = {{command, 3, false}, {guest.heap().alloc(1), 1, true}};
    ASSERT_TRUE(guest.transport().driver(2).add(buffers));
  }
  guest.transport().kick(2);
  for (int i = 0; i < 32; ++i)
    ASSERT_TRUE(guest.transport().driver(2).wait_used(guest.transport().interrupt(2),
                                                      deadline_in(FakeTransport::kPatience)));
  EXPECT_EQ(guest.counters().commands, 32u);
}

Bytes saved(NetGuest& guest) {
  guest.transport().freeze();
  return guest.transport().save();
}

TEST(NetSnapshot, a_freeze_in_the_midst_of_frames_loses_none) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  guest.post(20, 1000);
  // One frame whole, and half of a large one, which waits in the guest's buffers.
  peer.send(make_frame(500, 1));
  Bytes wire = StreamPeer::wire(make_frame(9000, 2));
  const Bytes rest(wire.begin() + 5000, wire.end());
  wire.resize(5000);
  peer.send_raw(wire);
  ASSERT_TRUE(guest.receive());
  // And frames that the other end does not read yet.
  std::vector<Bytes> sent;
  for (uint32_t i = 0; i < 20; ++i) {
    sent.push_back(make_frame(30'000, 10 + i));
    ASSERT_TRUE(guest.transport().driver(1).add(guest.make({}, sent.back())));
    guest.transport().kick_if_wanted(1);
  }
  for (int i = 0; i < 3; ++i) {
    guest.transport().freeze();
    guest.transport().thaw();
  }
  peer.send_raw(rest);
  const auto got = guest.receive();
  ASSERT_TRUE(got);
  EXPECT_TRUE(got->bytes == make_frame(9000, 2));
  for (const Bytes& frame : sent) EXPECT_TRUE(peer.receive() == frame);
  for (size_t i = 0; i < sent.size(); ++i)
    EXPECT_TRUE(guest.transport().driver(1).wait_used(guest.transport().interrupt(1),
                                                      deadline_in(FakeTransport::kPatience)));
  EXPECT_EQ(guest.counters().tx_dropped, 0u);
}

TEST(NetSnapshot, keeps_mac_and_link_and_asks_the_guest_to_announce_itself) {
  StreamPeer first;
  NetGuest before(first.ports());
  ASSERT_EQ(before.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, bytes_of(kOther)),
            kOk);
  before.device().set_link(false);
  const Bytes state = saved(before);

  StreamPeer second;
  NetGuest after(second.ports());
  after.transport().freeze();
  StateReader reader(state);
  const auto restored = after.device().restore(reader);
  ASSERT_TRUE(restored) << restored.error().text;
  after.transport().thaw();
  EXPECT_EQ(after.device().mac(), kOther);
  EXPECT_FALSE(after.device().link_up());
  EXPECT_EQ(after.config().status, VIRTIO_NET_S_ANNOUNCE);
  EXPECT_EQ(after.command(VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, {}), kOk);
  EXPECT_EQ(after.config().status, 0);
  after.device().set_link(true);
  after.post(1, 2048);
  second.send(make_frame(60, 1));
  EXPECT_TRUE(after.receive());
}

TEST(NetSnapshot, keeps_limits_that_were_set_at_run_time_instead_of_the_configs) {
  constexpr NetLimits kSet{.bandwidth_max = 1 << 20, .packets_max = 1};
  StreamPeer first;
  NetGuest before(first.ports());
  before.device().set_limits(kSet);
  const Bytes state = saved(before);

  StreamPeer second;
  NetGuest after(second.ports(), {.limits = {.bandwidth_max = 5, .packets_max = 7}});
  after.transport().freeze();
  StateReader reader(state);
  const auto restored = after.device().restore(reader);
  ASSERT_TRUE(restored) << restored.error().text;
  after.transport().thaw();
  EXPECT_EQ(after.device().limits(), kSet);
  // And they hold: one frame goes, the next one waits for a second.
  ASSERT_TRUE(after.send(make_frame(60, 1)));
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_TRUE(after.send(make_frame(60, 2)));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(500));
  EXPECT_GE(after.counters().throttled, 1u);
}

TEST(NetSnapshot, refuses_states_that_can_not_be) {
  StreamPeer peer;
  NetGuest guest(peer.ports());
  const Bytes good = saved(guest);
  size_t refused = 0;
  for (size_t size = 0; size < good.size(); ++size) {
    StateReader reader(std::span(good).first(size));
    refused += guest.device().restore(reader) ? 0 : 1;
  }
  EXPECT_EQ(refused, good.size()) << "truncated";
  const auto state = [](const MacAddress& mac, uint16_t pairs, uint64_t offloads) {
    StateWriter writer;
    writer.begin_section("virtio-net", 2);
    writer.bytes(mac);
    writer.number(pairs);
    writer.number(offloads);
    writer.boolean(true);
    writer.number(uint64_t{1});
    writer.number(uint64_t{1});
    writer.end_section();
    return writer.take();
  };
  for (const Bytes& bad :
       {state({1, 2, 3, 4, 5, 6}, 1, 0), state(kOther, 0, 0), state(kOther, 2, 0),
        state(kOther, 1, ~uint64_t{0}), state(kOther, 1, net_bit(VIRTIO_NET_F_GUEST_TSO4))}) {
    StateReader reader(bad);
    EXPECT_FALSE(guest.device().restore(reader));
    EXPECT_EQ(guest.device().mac(), NetGuest::kMac) << "nothing was changed";
    EXPECT_EQ(guest.device().limits(), NetLimits{});
  }
}

}  // namespace
}  // namespace lethe
