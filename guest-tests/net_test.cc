// A VM's network card from outside (label kvm): a test program at the other end, or passt, which
// may be killed.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <vector>

#include "guest-tests/api_check.h"
#include "guest-tests/gui_vm.h"

namespace {

using lethe_test::kPatience;
using lethe_test::Program;
using lethe_test::soon;
using testing::HasSubstr;

constexpr size_t kEthernet = 14;
using Frame = std::vector<uint8_t>;

// A call on a socket with a time limit also ends, with EINTR, when this process was stopped or
// frozen for a while (signal(7)).
auto unless_stopped(auto&& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

class NetVm : public testing::Test {
 protected:
  void SetUp() override {
    if (access("/dev/kvm", R_OK | W_OK) != 0)
      GTEST_SKIP() << "SKIPPED: /dev/kvm is missing or not permitted";
    char made[] = "/tmp/lethe-net-XXXXXX";
    ASSERT_NE(mkdtemp(made), nullptr);
    x_dir = made;
    setenv("XDG_RUNTIME_DIR", x_dir.c_str(), 1);
  }
  void TearDown() override {
    x_vm.kill_and_wait();
    if (!x_dir.empty()) std::filesystem::remove_all(x_dir);
  }
  // `net`: the keys of [[net]].
  void write_config(const std::string& test, const std::string& net) const {
    const std::string folder = lethe_test::program_folder().parent_path() / "guest-tests/baremetal";
    std::ofstream(x_dir + "/vm.toml")
        << "name = \"vm\"\n[memory]\nsize = \"32M\"\n[boot]\nkernel = \"" << folder
        << "/virtio.elf\"\ncmdline = \"test=" << test << "\"\n[[net]]\n"
        << net;
  }
  // `before`: words of a program that runs lethe.
  void start(const std::string& test, const std::string& net,
             std::vector<std::string> before = {}) {
    write_config(test, net);
    before.insert(before.end(),
                  {lethe_test::program_folder() / "lethe", "run", x_dir + "/vm.toml"});
    x_vm = Program(before, x_dir + "/log");
  }
  lethe::ClientAnswer ask(const std::string& method, const std::string& path,
                          const std::string& body = "") const {
    return lethe_test::ask_api(x_dir + "/lethe/vm/api.sock", method, path, body);
  }

  std::string x_dir;
  Program x_vm;
};

// The other end of `socket = PATH`: it listens before the VM starts.
class Peer {
 public:
  explicit Peer(const std::string& path) {
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    x_listener = lethe::UniqueFd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    // SAFETY: a sockaddr_un is given as the sockaddr that bind() wants, with its size.
    EXPECT_EQ(bind(x_listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
              0);
    EXPECT_EQ(listen(x_listener.get(), 1), 0);
    limit(x_listener.get());
  }
  bool accept() {
    x_stream = lethe::UniqueFd(unless_stopped(
        [&] { return ::accept4(x_listener.get(), nullptr, nullptr, SOCK_CLOEXEC); }));
    limit(x_stream.get());
    return x_stream.valid();
  }
  void hang_up() { x_stream.reset(); }
  void send(const Frame& frame) const {
    const uint32_t prefix = htonl(static_cast<uint32_t>(frame.size()));
    EXPECT_EQ(::send(x_stream.get(), &prefix, sizeof prefix, MSG_NOSIGNAL), sizeof prefix);
    EXPECT_EQ(::send(x_stream.get(), frame.data(), frame.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(frame.size()));
  }
  // Empty if none comes in time.
  [[nodiscard]] Frame receive() const {
    const Frame prefix = read(sizeof(uint32_t));
    if (prefix.empty()) return {};
    uint32_t size = 0;
    std::memcpy(&size, prefix.data(), sizeof size);
    return read(ntohl(size));
  }

 private:
  // That much, or nothing.
  [[nodiscard]] Frame read(size_t size) const {
    Frame all(size);
    for (size_t at = 0; at < size;) {
      const ssize_t got = unless_stopped(
          [&] { return recv(x_stream.get(), all.data() + at, size - at, MSG_WAITALL); });
      if (got <= 0) return {};
      at += static_cast<size_t>(got);
    }
    return all;
  }
  static void limit(int fd) {
    const timeval patience{.tv_sec = kPatience.count() / 1000, .tv_usec = 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  lethe::UniqueFd x_listener;
  lethe::UniqueFd x_stream;
};

Frame text_frame(const std::string& text) {
  Frame frame(kEthernet);
  frame.insert(frame.end(), text.begin(), text.end());
  return frame;
}

TEST_F(NetVm, frames_go_there_and_back) {
  Peer peer(x_dir + "/net.sock");
  start("net-echo", "socket = \"net.sock\"\n");
  ASSERT_TRUE(peer.accept());
  const Frame hello = peer.receive();
  EXPECT_EQ(std::string(hello.begin(), hello.end()), "hello from the guest");
  for (const size_t size : {60, 1514, 2036, 2037, 9014}) {
    Frame frame(size);
    for (size_t i = 0; i < size; ++i) frame[i] = static_cast<uint8_t>(i * 7 + size);
    peer.send(frame);
    EXPECT_EQ(peer.receive(), frame) << size;
  }
  peer.send(text_frame("bye"));
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();
  EXPECT_THAT(x_vm.said(), HasSubstr("ok virtio/net-echo"));
}

TEST_F(NetVm, link_and_limits_are_set_over_the_api_and_told_as_events) {
  Peer peer(x_dir + "/net.sock");
  start("net-echo", "socket = \"net.sock\"\n");
  ASSERT_TRUE(peer.accept());
  ASSERT_FALSE(peer.receive().empty());
  ASSERT_TRUE(soon([this] { return std::filesystem::exists(x_dir + "/lethe/vm/api.sock"); }));
  Program events({"curl", "-sSN", "--max-time", "120", "--unix-socket",
                  x_dir + "/lethe/vm/api.sock", "-H", "Last-Event-ID: 0", "http://vm/events"},
                 x_dir + "/events");
  const std::string before = ask("GET", "/nets").body;
  EXPECT_THAT(before, HasSubstr("\"backend\":\"socket\""));
  EXPECT_THAT(before, HasSubstr("\"link\":true,\"up\":true,\"bandwidth_max\":0,\"packets_max\":0"));
  EXPECT_EQ(ask("PATCH", "/nets/1", R"({"link":false})").status, 404u);

  EXPECT_THAT(ask("PATCH", "/nets/0", R"({"link":false})").body,
              HasSubstr("\"link\":false,\"up\":false"));
  EXPECT_TRUE(x_vm.says_soon("net: link down\n"));
  peer.send(text_frame("lost"));
  EXPECT_TRUE(soon([this] {
    return ask("GET", "/metrics").body.find("{device=\"net0\",why=\"rx_link_down\"} 1\n") !=
           std::string::npos;
  })) << ask("GET", "/metrics").body;
  EXPECT_THAT(ask("PATCH", "/nets/0", R"({"link":true})").body,
              HasSubstr("\"link\":true,\"up\":true"));
  EXPECT_TRUE(x_vm.says_soon("net: link up\n"));
  peer.send(text_frame("kept"));
  EXPECT_EQ(peer.receive(), text_frame("kept"));

  // A tenth of a second's worth, a frame, may go at once: the other ones take a tenth each.
  EXPECT_THAT(ask("PATCH", "/nets/0", R"({"packets_max":10})").body,
              HasSubstr("\"packets_max\":10"));
  EXPECT_THAT(ask("GET", "/nets/0").body, HasSubstr("\"packets_max\":10"));
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 6; ++i) peer.send(text_frame("slow"));
  for (int i = 0; i < 6; ++i) EXPECT_EQ(peer.receive(), text_frame("slow"));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(450));
  EXPECT_THAT(ask("PATCH", "/nets/0", R"({"packets_max":0})").body, HasSubstr("\"packets_max\":0"));

  peer.hang_up();
  ASSERT_TRUE(peer.accept());
  EXPECT_TRUE(events.says_soon("\"why\":\"connected again after 1 attempt\"}"));
  peer.send(text_frame("bye"));
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();
  EXPECT_EQ(events.wait_for_end(), 0) << events.said();
  EXPECT_EQ(lethe_test::event_names(events.said()),
            "started link net link net net net link link ended ");
  EXPECT_THAT(events.said(),
              HasSubstr("\"up\":false,\"why\":\"the other end closed the socket\"}"));
}

TEST_F(NetVm, says_what_a_socket_that_nobody_listens_at_misses) {
  start("net-echo", "socket = \"net.sock\"\n");
  EXPECT_EQ(x_vm.wait_for_end(), 1);
  EXPECT_THAT(x_vm.said(), HasSubstr("net.sock': No such file or directory"));
}

// A VM on a tap that this process has opened, in a network of the test's own; this end is a packet
// socket on the tap's interface.
class TapVm : public NetVm {
 protected:
  static constexpr const char* kTap = "lethe-tap";

  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(NetVm::SetUp());
    if (IsSkipped()) return;
    x_home = lethe::UniqueFd(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    if (unshare(CLONE_NEWNET) != 0 || !make_tap())
      GTEST_SKIP() << "SKIPPED: taps need a network namespace and /dev/net/tun (root): "
                   << strerror(errno);
    bring_up();
  }
  void TearDown() override {
    Program kill({lethe_test::program_folder() / "lethe", "kill", "--all"}, x_dir + "/killed");
    EXPECT_EQ(kill.wait_for_end(), 0) << kill.said();
    (void)setns(x_home.get(), CLONE_NEWNET);
    NetVm::TearDown();
  }
  // Left open for the VM: no O_CLOEXEC.
  bool make_tap() {
    x_tap = lethe::UniqueFd(open("/dev/net/tun", O_RDWR));
    ifreq request{};
    std::string(kTap).copy(request.ifr_name, IFNAMSIZ - 1);
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    return x_tap.valid() && ioctl(x_tap.get(), TUNSETIFF, &request) == 0;
  }
  void bring_up() {
    // The kernel would send frames of its own.
    std::ofstream("/proc/sys/net/ipv6/conf/" + std::string(kTap) + "/disable_ipv6") << "1";
    x_socket = lethe::UniqueFd(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL)));
    ifreq request{};
    std::string(kTap).copy(request.ifr_name, IFNAMSIZ - 1);
    request.ifr_flags = IFF_UP;
    ASSERT_EQ(ioctl(x_socket.get(), SIOCSIFFLAGS, &request), 0);
    ASSERT_EQ(ioctl(x_socket.get(), SIOCGIFINDEX, &request), 0);
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ETH_P_ALL);
    address.sll_ifindex = request.ifr_ifindex;
    // SAFETY: a sockaddr_ll is given as the sockaddr that bind() wants, with its size.
    ASSERT_EQ(bind(x_socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const timeval patience{.tv_sec = kPatience.count() / 1000, .tv_usec = 0};
    setsockopt(x_socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  void start_detached() {
    write_config("net-echo", "tap_fd = " + std::to_string(x_tap.get()) + "\n");
    Program run({lethe_test::program_folder() / "lethe", "run", "-d", x_dir + "/vm.toml"},
                x_dir + "/run");
    ASSERT_EQ(run.wait_for_end(), 0) << run.said();
  }
  [[nodiscard]] std::string log(const std::string& option = "") const {
    std::vector<std::string> words = {lethe_test::program_folder() / "lethe", "log", "vm"};
    if (!option.empty()) words.push_back(option);
    Program log(words, x_dir + "/said");
    EXPECT_EQ(log.wait_for_end(), 0) << log.said();
    return log.said();
  }
  void send(const Frame& frame) const {
    EXPECT_EQ(::send(x_socket.get(), frame.data(), frame.size(), 0),
              static_cast<ssize_t>(frame.size()));
  }
  // The next one that came from the guest; empty if none comes in time.
  [[nodiscard]] Frame receive() const {
    for (;;) {
      Frame frame(65536);
      sockaddr_ll from{};
      socklen_t size = sizeof from;
      // SAFETY: a sockaddr_ll is given as the sockaddr that recvfrom() wants, with its size.
      const ssize_t got = unless_stopped([&] {
        return recvfrom(x_socket.get(), frame.data(), frame.size(), 0,
                        reinterpret_cast<sockaddr*>(&from), &size);
      });
      frame.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
      if (got < 0 || from.sll_pkttype != PACKET_OUTGOING) return frame;
    }
  }
  void expect_hello_and_echo() const {
    const Frame hello = receive();
    EXPECT_EQ(std::string(hello.begin(), hello.end()), "hello from the guest");
    for (const size_t size : {60, 1514}) {
      Frame frame(size, 0xFF);
      for (size_t i = kEthernet; i < size; ++i) frame[i] = static_cast<uint8_t>(i * 7 + size);
      send(frame);
      EXPECT_EQ(receive(), frame) << size;
    }
  }

  lethe::UniqueFd x_home;
  lethe::UniqueFd x_tap;
  lethe::UniqueFd x_socket;
};

TEST_F(TapVm, a_detached_vm_keeps_the_tap_it_was_given_over_a_restart) {
  ASSERT_NO_FATAL_FAILURE(start_detached());
  expect_hello_and_echo();
  EXPECT_THAT(ask("GET", "/nets").body, HasSubstr("\"backend\":\"tap_fd\""));
  EXPECT_EQ(ask("POST", "/reset").status, 202u);
  expect_hello_and_echo();
  send(text_frame("bye"));
  EXPECT_TRUE(soon([this] {
    return log("--messages").find("'vm' ended: exit code 64\n") != std::string::npos;
  })) << log("--messages");
  EXPECT_THAT(log(), HasSubstr("ok virtio/net-echo"));
}

TEST_F(TapVm, a_tap_that_is_deleted_takes_the_link_down) {
  ASSERT_NO_FATAL_FAILURE(start_detached());
  expect_hello_and_echo();
  ASSERT_EQ(std::system(("ip link delete " + std::string(kTap)).c_str()), 0);
  EXPECT_TRUE(soon([this] { return log().find("net: link down\n") != std::string::npos; }));
  EXPECT_THAT(ask("GET", "/nets/0").body, HasSubstr("\"link\":true,\"up\":false"));
  EXPECT_THAT(log("--messages"), HasSubstr("net0: the link is down: the tap is gone"));
}

// Runs passt where it has an interface, an address and a route, whatever the host has: in a network
// of its own.
class PasstVm : public NetVm {
 protected:
  static constexpr const char* kNet =
      "user = true\npasst_options = [\"--ipv4-only\", \"--dns\", \"none\"]\n";

  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(NetVm::SetUp());
    if (IsSkipped()) return;
    if (std::system("command -v passt ip unshare >/dev/null") != 0)
      GTEST_SKIP() << "SKIPPED: needs passt, ip and unshare (apt-get install passt iproute2)";
    const std::string probe = in_own_network("true") + " >" + x_dir + "/probe 2>&1";
    if (std::system(probe.c_str()) != 0)
      GTEST_SKIP() << "SKIPPED: this host does not let its users make network namespaces: "
                   << lethe_test::file_text(x_dir + "/probe");
  }
  static std::string set_up() {
    return "ip link set lo up && ip tuntap add dev up0 mode tap && ip link set up0 up && "
           "ip addr add 192.0.2.7/24 dev up0 && ip route add default via 192.0.2.1 dev up0";
  }
  static std::string in_own_network(const std::string& command) {
    return "unshare --user --map-root-user --net sh -c '" + set_up() + " && " + command + "'";
  }
  void start_with_passt(const std::string& test, const std::string& more = "") {
    start(test, kNet + more,
          {"unshare", "--user", "--map-root-user", "--net", "sh", "-c",
           set_up() + " && exec \"$@\"", "sh"});
  }
  // The passt of our VM: the one in its network.
  pid_t passt_pid() const {
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const std::string pid = entry.path().filename();
      if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
      if (!lethe_test::file_text("/proc/" + pid + "/comm").starts_with("passt")) continue;
      if (parent_of(pid) == x_lethe) return std::stoi(pid);
    }
    return -1;
  }
  static std::string parent_of(const std::string& pid) {
    const std::string status = lethe_test::file_text("/proc/" + pid + "/status");
    const size_t at = status.find("PPid:\t");
    return at == std::string::npos ? "" : status.substr(at + 6, status.find('\n', at) - at - 6);
  }
  std::string x_lethe;  // its process
};

TEST_F(PasstVm, the_guest_gets_an_address_by_dhcp) {
  start_with_passt("net-dhcp");
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();
  EXPECT_THAT(x_vm.said(), HasSubstr("net: offered 192.0.2.7"));
}

TEST_F(PasstVm, a_passt_that_dies_takes_the_link_down_and_a_new_one_brings_it_back) {
  start_with_passt("net-link");
  ASSERT_TRUE(x_vm.says_soon("net: link up\n")) << x_vm.said();
  x_lethe = std::to_string(x_vm.pid());
  pid_t passt = -1;
  ASSERT_TRUE(soon([&] { return (passt = passt_pid()) > 0; }));
  ASSERT_EQ(kill(passt, SIGKILL), 0);
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();
  const std::string said = x_vm.said();
  EXPECT_THAT(said, HasSubstr("net: link down\n"));
  EXPECT_THAT(said, HasSubstr("net: link up again\n"));
  EXPECT_THAT(said, HasSubstr("the link is down: passt: killed by signal 9"));
  EXPECT_THAT(said, HasSubstr("the link is up: connected again after 1 attempt"));
}

TEST_F(PasstVm, passt_does_not_outlive_a_vm_that_is_killed) {
  start_with_passt("net-link");
  ASSERT_TRUE(x_vm.says_soon("net: link up\n")) << x_vm.said();
  x_lethe = std::to_string(x_vm.pid());
  pid_t passt = -1;
  ASSERT_TRUE(soon([&] { return (passt = passt_pid()) > 0; }));
  x_vm.kill_and_wait();
  EXPECT_TRUE(soon([&] { return kill(passt, 0) != 0; }));
}

TEST_F(PasstVm, says_what_passt_said_when_it_can_not_start) {
  start_with_passt("net-link", "forwards = [\"tcp:203.0.113.1:8080:80\"]\n");
  EXPECT_TRUE(x_vm.says_soon("the link is down: passt: exit code 1: "));
}

TEST_F(NetVm, names_the_package_of_a_passt_that_is_missing) {
  start("net-dhcp", "user = true\n", {"env", "PATH=/nonexistent"});
  EXPECT_EQ(x_vm.wait_for_end(), 1);
  EXPECT_EQ(x_vm.said(),
            "lethe: net: user = true needs passt, which is not in PATH: install the package "
            "'passt' (apt-get install passt)\n");
}

}  // namespace
