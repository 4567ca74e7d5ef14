// [[net]] tables, and what their texts mean.
#include "vmm/net_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmm/config_schema.h"
#include "vmm/passt.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kKernel = "[boot]\nkernel = \"k\"\n";

struct Parsed {
  VmConfig config;
  std::vector<std::string> errors;
};
Parsed parse(const std::string& net, const std::vector<std::string>& overrides = {}) {
  Parsed parsed;
  parsed.config = parse_config(std::string(kKernel) + net, "dir/vm.toml", overrides, parsed.errors);
  return parsed;
}
std::string error_of(const std::string& net) {
  const auto errors = parse(net).errors;
  return errors.empty() ? "" : errors[0];
}

NetConfig net_of(auto&& set) {
  NetConfig net;
  set(net);
  return net;
}

TEST(NetConfig, takes_every_kind_of_card) {
  const Parsed parsed = parse(
      "[[net]]\nuser = true\nforwards = [\"tcp:8080:80\"]\nhost_loopback = true\n"
      "[[net]]\ntap = \"vm0\"\nqueues = 4\nmac = \"52:54:00:12:34:56\"\nmtu = 9000\n"
      "[[net]]\ntap_fd = 7\nlink = false\nbandwidth_max = \"1M\"\npackets_max = 1000\n"
      "[[net]]\nsocket = \"net.sock\"\nqueue_size = 64\n");
  EXPECT_THAT(parsed.errors, IsEmpty());
  ASSERT_EQ(parsed.config.nets.size(), 4u);
  EXPECT_EQ(parsed.config.nets[0], net_of([](NetConfig& net) {
              net.user = true;
              net.forwards = {"tcp:8080:80"};
              net.host_loopback = true;
            }));
  EXPECT_EQ(parsed.config.nets[1], net_of([](NetConfig& net) {
              net.tap = "vm0";
              net.queues = 4;
              net.mac = "52:54:00:12:34:56";
              net.mtu = 9000;
            }));
  EXPECT_EQ(parsed.config.nets[2], net_of([](NetConfig& net) {
              net.tap_fd = 7;
              net.link = false;
              net.bandwidth_bytes_max = kMiB;
              net.packets_max = 1000;
            }));
  EXPECT_EQ(parsed.config.nets[3], net_of([](NetConfig& net) {
              net.socket = "dir/net.sock";
              net.queue_size = 64;
            }));
}

TEST(NetConfig, wants_one_other_end) {
  EXPECT_THAT(error_of("[[net]]\n"), HasSubstr("key 'net.0' has 0 of user = true, tap"));
  EXPECT_THAT(error_of("[[net]]\nuser = false\n"), HasSubstr("has 0 of"));
  EXPECT_THAT(error_of("[[net]]\nuser = true\n[[net]]\nuser = true\ntap = \"t\"\n"),
              HasSubstr("key 'net.1' has 2 of"));
  EXPECT_THAT(error_of("[[net]]\ntap = \"t\"\nhost_loopback = true\n"),
              HasSubstr("which are for user = true"));
  EXPECT_THAT(error_of("[[net]]\nuser = true\nqueues = 2\n"), HasSubstr("need a tap"));
  EXPECT_THAT(error_of("[net]\nuser = true\n"), HasSubstr("write [[net]]"));
}

TEST(NetConfig, says_where_a_bad_value_is) {
  EXPECT_THAT(error_of("[[net]]\nuser = true\nmtu = 67\n"),
              HasSubstr("dir/vm.toml:5:1: key 'net.mtu'"));
  EXPECT_THAT(error_of("[[net]]\nuser = true\nmtu = 65521\n"), HasSubstr("from 68 to 65520"));
  EXPECT_THAT(error_of("[[net]]\nuser = true\nmac = \"01:00:5e:00:00:01\"\n"),
              HasSubstr("six pairs of hexadecimal digits"));
  EXPECT_THAT(error_of("[[net]]\nuser = true\nforwards = [\"tcp:80\"]\n"),
              HasSubstr("tcp:127.0.0.1:8080:80"));
  EXPECT_THAT(error_of("[[net]]\ntap = \"sixteen-letters-\"\n"), HasSubstr("net.tap"));
  EXPECT_THAT(error_of("[[net]]\ntap = \"a/b\"\n"), HasSubstr("an interface's name"));
  EXPECT_THAT(error_of("[[net]]\nusers = true\n"), HasSubstr("did you mean 'net.user'?"));
  std::string many;
  for (size_t i = 0; i <= kNetsMax; ++i) many += "[[net]]\nuser = true\n";
  EXPECT_THAT(error_of(many), HasSubstr("key 'net' is one too many: at most 8"));
}

TEST(NetConfig, can_be_overridden) {
  const Parsed parsed = parse("[[net]]\nuser = true\n", {"net.0.mtu=1500", "net.0.link=false"});
  EXPECT_THAT(parsed.errors, IsEmpty());
  EXPECT_EQ(parsed.config.nets.at(0), net_of([](NetConfig& net) {
              net.user = true;
              net.mtu = 1500;
              net.link = false;
            }));
  EXPECT_THAT(parse("[[net]]\nuser = true\n", {"net.1.mtu=1500"}).errors[0],
              HasSubstr("names no net: write net.N.tap, with N less than the 1 nets"));
}

TEST(NetConfig, reads_forwards) {
  EXPECT_EQ(parse_forward("tcp:8080:80"), (PortForward{false, "127.0.0.1", 8080, 80}));
  EXPECT_EQ(parse_forward("udp:192.0.2.7:5353:53"), (PortForward{true, "192.0.2.7", 5353, 53}));
  EXPECT_EQ(parse_forward("tcp:[::1]:1:65535"), (PortForward{false, "::1", 1, 65535}));
  EXPECT_EQ(parse_forward("tcp:[::1]:1:65535")->passt_spec(), "::1/1:65535");
  for (const char* bad : {"",
                          "tcp",
                          "tcp:",
                          "tcp:80",
                          "icmp:80:80",
                          "tcp:0:80",
                          "tcp:80:0",
                          "tcp:65536:80",
                          "tcp:-1:80",
                          "tcp:80:80:80",
                          "tcp:localhost:80:80",
                          "tcp:::1:80:80",
                          "tcp:[::1:80:80",
                          "tcp:[127.0.0.1]:80:80",
                          "tcp:1.2.3.4/5:80:80",
                          "tcp: 80:80",
                          "tcp:80:80 ",
                          "tcp:8,9:80",
                          "TCP:80:80",
                          "tcp:1.2.3.4%eth0:80:80"})
    EXPECT_EQ(parse_forward(bad), std::nullopt) << bad;
}

TEST(NetConfig, reads_mac_addresses) {
  EXPECT_EQ(parse_mac("52:54:00:aB:cD:eF"), (MacAddress{0x52, 0x54, 0, 0xab, 0xcd, 0xef}));
  EXPECT_EQ(mac_text({0x52, 0x54, 0, 0xab, 0xcd, 0xef}), "52:54:00:ab:cd:ef");
  for (const char* bad : {"", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:567",
                          "52-54-00-12-34-56", "53:54:00:12:34:56", "00:00:00:00:00:00",
                          "ff:ff:ff:ff:ff:ff", "5g:54:00:12:34:56", "+2:54:00:12:34:56"})
    EXPECT_EQ(parse_mac(bad), std::nullopt) << bad;
}

TEST(NetConfig, makes_mac_addresses_that_stay_and_differ) {
  const MacAddress mac = default_mac("web", 0);
  EXPECT_EQ(mac, default_mac("web", 0));
  EXPECT_NE(mac, default_mac("web", 1));
  EXPECT_NE(mac, default_mac("wea", 0));
  EXPECT_EQ(mac[0], 0x02) << "locally administered, of one card";
}

TEST(NetConfig, tells_passt_what_it_is_to_do) {
  NetConfig net;
  net.user = true;
  EXPECT_THAT(passt_arguments(net), ElementsAre("passt", "--foreground", "--quiet", "--mtu",
                                                "65520", "--udp-ports", "none", "--no-map-gw"));
  net.forwards = {"tcp:8080:80", "udp:[::1]:53:53"};
  net.host_loopback = true;
  net.passt_options = {"--dns", "none"};
  net.mtu = 1500;
  EXPECT_THAT(passt_arguments(net),
              ElementsAre("passt", "--foreground", "--quiet", "--mtu", "1500", "--tcp-ports",
                          "127.0.0.1/8080:80", "--udp-ports", "::1/53:53", "--dns", "none"));
}

}  // namespace
}  // namespace lethe
