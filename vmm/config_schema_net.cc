// The keys of [[net]].
#include <fmt/format.h>

#include "devices/virtio/net/net.h"
#include "vmm/config_schema.h"
#include "vmm/net_config.h"

namespace lethe {
namespace {

using Value = ConfigValue;

constexpr uint64_t kTapNameMax = 15;      // IFNAMSIZ less the zero
constexpr uint64_t kSocketPathMax = 107;  // sun_path less the zero

bool power_of_two(const Value& v) { return (v.number & (v.number - 1)) == 0; }
bool mac_ok(const Value& v) { return parse_mac(v.text).has_value(); }
// What the kernel takes for an interface's name.
bool tap_ok(const Value& v) {
  return v.text != "." && v.text != ".." && v.text.find_first_of("/: %") == std::string::npos;
}
bool forwards_ok(const Value& v) {
  for (const std::string& text : v.list)
    if (!parse_forward(text)) return false;
  return true;
}

constexpr ConfigKey kNetKeys[] = {
    {.section = "net",
     .name = "user",
     .type = KeyType::kBool,
     .help =
         "Connect the guest by passt, a program that needs no rights: the guest gets an address "
         "by DHCP and can reach what this user can. Lethe starts it (Debian's package: passt).",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.nets[i].user = v.flag; }},
    {.section = "net",
     .name = "tap",
     .type = KeyType::kText,
     .min = 1,
     .max = kTapNameMax,
     .valid = tap_ok,
     .rule = "an interface's name of at most 15 characters, without spaces, '/', ':' and '%'",
     .help = "Connect it to the tap device of this name.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.nets[i].tap = std::move(v.text); }},
    {.section = "net",
     .name = "tap_fd",
     .type = KeyType::kInteger,
     .min = 3,
     .max = 1 << 20,
     .help = "Connect it to the tap that the parent process has opened as this descriptor (with "
             "`IFF_TAP` and `IFF_NO_PI`; with `IFF_VNET_HDR` too, it has offloads).",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.nets[i].tap_fd = static_cast<uint32_t>(v.number); }},
    {.section = "net",
     .name = "socket",
     .type = KeyType::kPath,
     .min = 1,
     .max = kSocketPathMax,
     .help = "Connect it to this Unix stream socket, on which each frame comes behind its length "
             "in 4 bytes, big endian: what `passt --socket` and QEMU's `-netdev stream` speak.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.nets[i].socket = std::move(v.text); }},
    {.section = "net",
     .name = "forwards",
     .type = KeyType::kTextList,
     .max = 128,
     .valid = forwards_ok,
     .rule = kForwardRule,
     .help = "With `user`: ports of the host that lead to the guest, each "
             "`\"tcp:[ADDRESS:]HOSTPORT:GUESTPORT\"`, or udp. Without an address: of 127.0.0.1.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.nets[i].forwards = std::move(v.list); }},
    {.section = "net",
     .name = "host_loopback",
     .type = KeyType::kBool,
     .fallback = "false",
     .help = "With `user`: let the guest reach services on the host's loopback interface, by the "
             "address of its gateway.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.nets[i].host_loopback = v.flag; }},
    {.section = "net",
     .name = "passt_options",
     .type = KeyType::kTextList,
     .max = 64,
     .help = "With `user`: more options for passt(1), such as [\"--dns\", \"192.0.2.53\"].",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.nets[i].passt_options = std::move(v.list); }},
    {.section = "net",
     .name = "mac",
     .type = KeyType::kText,
     .max = 17,
     .valid = mac_ok,
     .rule = kMacRule,
     .help = "The card's MAC address. Default: made of the VM's name and the card's number.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.nets[i].mac = std::move(v.text); }},
    {.section = "net",
     .name = "mtu",
     .type = KeyType::kInteger,
     .min = kNetMtuMin,
     .max = kNetMtuMax,
     .help = "The largest packet, in bytes, as the guest is told. Default: 65520 with `user`, "
             "else 1500.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.nets[i].mtu = static_cast<uint32_t>(v.number); }},
    {.section = "net",
     .name = "queues",
     .type = KeyType::kInteger,
     .fallback = "1",
     .min = 1,
     .max = kNetPairsMax,
     .help = "Pairs of queues, one to send and one to receive. More than one need a `tap`.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.nets[i].queues = static_cast<uint32_t>(v.number); }},
    {.section = "net",
     .name = "queue_size",
     .type = KeyType::kInteger,
     .fallback = "256",
     .min = 16,
     .max = 1024,
     .valid = power_of_two,
     .rule = "a power of two from 16 to 1024",
     .help = "Entries of each queue.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.nets[i].queue_size = static_cast<uint32_t>(v.number); }},
    {.section = "net",
     .name = "link",
     .type = KeyType::kBool,
     .fallback = "true",
     .help = "Whether the link is up at first: the cable is in. `PATCH /nets/N` changes it while "
             "the VM runs, and the two limits.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.nets[i].link = v.flag; }},
    {.section = "net",
     .name = "bandwidth_max",
     .type = KeyType::kSize,
     .fallback = "\"0\"",
     .max = kTiB,
     .help = "Bytes per second at most, in each direction. 0: no limit.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.nets[i].bandwidth_bytes_max = v.number; }},
    {.section = "net",
     .name = "packets_max",
     .type = KeyType::kInteger,
     .fallback = "0",
     .max = 1000000000,
     .help = "Packets per second at most, in each direction. 0: no limit.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.nets[i].packets_max = v.number; }},
};

}  // namespace

std::span<const ConfigKey> net_config_keys() { return kNetKeys; }

std::optional<std::string> net_problem(const NetConfig& net) {
  const int ends = net.user + !net.tap.empty() + net.tap_fd.has_value() + !net.socket.empty();
  if (ends != 1)
    return fmt::format(
        "has {} of user = true, tap, tap_fd and socket: it must have one; user = true needs no "
        "rights",
        ends);
  if (!net.user && (!net.forwards.empty() || net.host_loopback || !net.passt_options.empty()))
    return "has forwards, host_loopback or passt_options, which are for user = true";
  if (net.queues > 1 && net.tap.empty()) return "has queues > 1, which need a tap";
  return std::nullopt;
}

}  // namespace lethe
