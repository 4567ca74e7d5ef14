// What the texts in a [[net]] table mean.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "devices/virtio/net/net_control.h"
#include "vmm/config.h"

namespace lethe {

// A port of the host's that leads to one of the guest's.
struct PortForward {
  bool udp = false;
  std::string address;  // of the host, numeric
  uint16_t host_port = 0;
  uint16_t guest_port = 0;
  // As passt's options -t and -u have it.
  [[nodiscard]] std::string passt_spec() const;
  bool operator==(const PortForward&) const = default;
};

inline constexpr const char* kForwardRule =
    "a list of \"tcp:HOSTPORT:GUESTPORT\" or \"tcp:ADDRESS:HOSTPORT:GUESTPORT\" (udp likewise), "
    "such as "
    "\"tcp:127.0.0.1:8080:80\" or \"tcp:[::1]:8080:80\"";
// Without an address: 127.0.0.1, so that nothing is open to the network by oversight.
[[nodiscard]] std::optional<PortForward> parse_forward(std::string_view text);

inline constexpr const char* kMacRule =
    "six pairs of hexadecimal digits with colons, such as \"52:54:00:12:34:56\", of one card (the "
    "first pair even) and not all 0";
[[nodiscard]] std::optional<MacAddress> parse_mac(std::string_view text);
// The same for the same VM and place each time; locally administered.
[[nodiscard]] MacAddress default_mac(std::string_view vm_name, size_t index);

[[nodiscard]] std::string mac_text(const MacAddress& mac);
// "user", "tap", "tap_fd" or "socket".
[[nodiscard]] const char* backend_name(const NetConfig& net);

[[nodiscard]] inline uint32_t mtu_of(const NetConfig& net) {
  constexpr uint32_t kUserMtu = 65520;  // as large as passt takes: large frames cost least
  constexpr uint32_t kUsualMtu = 1500;
  return net.mtu.value_or(net.user ? kUserMtu : kUsualMtu);
}

}  // namespace lethe
