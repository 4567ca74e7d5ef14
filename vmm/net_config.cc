#include "vmm/net_config.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <array>
#include <charconv>

namespace lethe {
namespace {

std::optional<uint16_t> parse_port(std::string_view text) {
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc{} || end != text.data() + text.size() || port == 0) return std::nullopt;
  return port;
}

bool is_address(const std::string& text, int family) {
  std::array<uint8_t, sizeof(in6_addr)> raw{};
  return ::inet_pton(family, text.c_str(), raw.data()) == 1;
}

std::optional<uint8_t> parse_hex_pair(std::string_view text) {
  uint8_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (text.size() != 2 || error != std::errc{} || end != text.data() + 2) return std::nullopt;
  return value;
}

}  // namespace

std::string PortForward::passt_spec() const {
  return fmt::format("{}/{}:{}", address, host_port, guest_port);
}

std::optional<PortForward> parse_forward(std::string_view text) {
  PortForward forward;
  if (!text.starts_with("tcp:") && !text.starts_with("udp:")) return std::nullopt;
  forward.udp = text.starts_with("udp:");
  text.remove_prefix(4);
  const size_t last = text.rfind(':');
  if (last == std::string_view::npos) return std::nullopt;
  const auto guest_port = parse_port(text.substr(last + 1));
  text = text.substr(0, last);
  const size_t before = text.rfind(':');
  const auto host_port =
      parse_port(before == std::string_view::npos ? text : text.substr(before + 1));
  if (!guest_port || !host_port) return std::nullopt;
  forward.guest_port = *guest_port;
  forward.host_port = *host_port;
  forward.address = before == std::string_view::npos ? "127.0.0.1" : text.substr(0, before);
  if (forward.address.starts_with('[') && forward.address.ends_with(']')) {
    forward.address = forward.address.substr(1, forward.address.size() - 2);
    if (!is_address(forward.address, AF_INET6)) return std::nullopt;
  } else if (!is_address(forward.address, AF_INET)) {
    return std::nullopt;
  }
  return forward;
}

std::optional<MacAddress> parse_mac(std::string_view text) {
  MacAddress mac{};
  if (text.size() != 3 * mac.size() - 1) return std::nullopt;
  for (size_t i = 0; i < mac.size(); ++i) {
    const auto value = parse_hex_pair(text.substr(3 * i, 2));
    if (!value || (i > 0 && text[3 * i - 1] != ':')) return std::nullopt;
    mac[i] = *value;
  }
  if ((mac[0] & 1) != 0 || mac == MacAddress{}) return std::nullopt;
  return mac;
}

std::string mac_text(const MacAddress& mac) { return fmt::format("{:02x}", fmt::join(mac, ":")); }

const char* backend_name(const NetConfig& net) {
  if (net.user) return "user";
  if (!net.tap.empty()) return "tap";
  return net.tap_fd ? "tap_fd" : "socket";
}

// FNV-1a: 40 bits of it tell VMs of one network apart.
MacAddress default_mac(std::string_view vm_name, size_t index) {
  uint64_t hash = 0xcbf2'9ce4'8422'2325;
  for (const char c : fmt::format("{}/net{}", vm_name, index))
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100'0000'01b3;
  MacAddress mac{0x02};  // locally administered, of one card
  for (size_t i = 1; i < mac.size(); ++i) mac[i] = static_cast<uint8_t>(hash >> (8 * i));
  return mac;
}

}  // namespace lethe
