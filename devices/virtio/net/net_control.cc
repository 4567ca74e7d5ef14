#include "devices/virtio/net/net_control.h"

#include <type_traits>

#include "devices/virtio/net/frame_check.h"

namespace lethe {
namespace {

constexpr uint64_t kGuestOffloads =
    net_bit(VIRTIO_NET_F_GUEST_CSUM) | net_bit(VIRTIO_NET_F_GUEST_TSO4) |
    net_bit(VIRTIO_NET_F_GUEST_TSO6) | net_bit(VIRTIO_NET_F_GUEST_ECN);

// A command's data, taken from the front; each byte is copied out once.
class Arguments {
 public:
  explicit Arguments(const Chain& chain) : x_chain(chain) {}
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  bool take(T& to) {
    // SAFETY: the object's bytes.
    const std::span raw(reinterpret_cast<uint8_t*>(&to), sizeof to);
    if (x_chain.copy_from_readable(x_at, raw) != sizeof to) return false;
    x_at += sizeof to;
    return true;
  }
  bool skip(uint64_t bytes) {
    if (bytes > x_chain.readable_bytes() - x_at) return false;
    x_at += bytes;
    return true;
  }
  [[nodiscard]] bool at_end() const { return x_at == x_chain.readable_bytes(); }

 private:
  const Chain& x_chain;
  uint64_t x_at = 0;
};

// 5.1.6.5.1: nothing is filtered, so every mode holds.
bool run_receive_mode(uint8_t command, Arguments arguments) {
  uint8_t on = 0;
  return command <= VIRTIO_NET_CTRL_RX_ALLMULTI && arguments.take(on) && arguments.at_end();
}

// 5.1.6.5.2. The filter table is checked and forgotten: "filtering is non-perfect".
bool run_mac(uint8_t command, Arguments arguments, uint64_t features, NetCommands& commands) {
  if (command == VIRTIO_NET_CTRL_MAC_TABLE_SET) {
    for (int table = 0; table < 2; ++table) {
      uint32_t entries = 0;
      if (!arguments.take(entries) || !arguments.skip(uint64_t{entries} * sizeof(MacAddress)))
        return false;
    }
    return arguments.at_end();
  }
  if (command != VIRTIO_NET_CTRL_MAC_ADDR_SET ||
      (features & net_bit(VIRTIO_NET_F_CTRL_MAC_ADDR)) == 0)
    return false;
  MacAddress mac;
  if (!arguments.take(mac) || !arguments.at_end()) return false;
  const bool group = (mac[0] & 1) != 0;  // a multicast address is nobody's own
  if (group || mac == MacAddress{}) return false;
  commands.set_mac(mac);
  return true;
}

// 5.1.6.5.5
bool run_pairs(uint8_t command, Arguments arguments, uint16_t pairs_max, NetCommands& commands) {
  uint16_t pairs = 0;
  if (command != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || !arguments.take(pairs) || !arguments.at_end())
    return false;
  if (pairs < 1 || pairs > pairs_max) return false;
  commands.set_pairs(pairs);
  return true;
}

// 5.1.6.5.6: only what was negotiated may be switched.
bool run_offloads(uint8_t command, Arguments arguments, uint64_t features, NetCommands& commands) {
  uint64_t offloads = 0;
  if (command != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET || !arguments.take(offloads) ||
      !arguments.at_end())
    return false;
  if ((offloads & ~(features & kGuestOffloads)) != 0) return false;
  commands.set_guest_offloads(offloads);
  return true;
}

bool dispatch(Arguments arguments, uint64_t features, uint16_t pairs_max, NetCommands& commands) {
  const auto has = [features](unsigned feature) { return (features & net_bit(feature)) != 0; };
  virtio_net_ctrl_hdr header{};
  if (!arguments.take(header)) return false;
  switch (header.class_) {
    case VIRTIO_NET_CTRL_RX:
      return has(VIRTIO_NET_F_CTRL_RX) && run_receive_mode(header.cmd, arguments);
    case VIRTIO_NET_CTRL_MAC:
      return run_mac(header.cmd, arguments, features, commands);
    case VIRTIO_NET_CTRL_MQ:
      return has(VIRTIO_NET_F_MQ) && run_pairs(header.cmd, arguments, pairs_max, commands);
    case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
      return has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) &&
             run_offloads(header.cmd, arguments, features, commands);
    case VIRTIO_NET_CTRL_ANNOUNCE:
      if (!has(VIRTIO_NET_F_GUEST_ANNOUNCE) || header.cmd != VIRTIO_NET_CTRL_ANNOUNCE_ACK ||
          !arguments.at_end())
        return false;
      commands.announced();
      return true;
    default:
      return false;
  }
}

}  // namespace

bool run_command(const Chain& chain, uint64_t features, uint16_t pairs_max, NetCommands& commands,
                 uint32_t& written) {
  written = 0;
  // A command whose driver can't be told is not run.
  if (chain.writable_bytes() < sizeof(virtio_net_ctrl_ack)) return false;
  const bool ok = dispatch(Arguments(chain), features, pairs_max, commands);
  const virtio_net_ctrl_ack ack = ok ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
  written = static_cast<uint32_t>(chain.copy_to_writable(0, {&ack, sizeof ack}));
  return ok;
}

}  // namespace lethe
