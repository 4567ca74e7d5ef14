// The host's ends of cards: a socket that goes away and comes back, passt's that do not start.
#include "vmm/net_host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>
#include <mutex>

#include "base/test_util.h"

namespace lethe {
namespace {

using testing::HasSubstr;

class NetHostTest : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-neth-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    x_config.name = "vm";
  }
  void TearDown() override {
    x_thread.run_and_wait([&] {
      x_device.reset();
      x_host.reset();
    });
    std::filesystem::remove_all(x_dir);
  }
  [[nodiscard]] UniqueFd listen() const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    (x_dir + "/net.sock").copy(address.sun_path, sizeof address.sun_path - 1);
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    // SAFETY: what bind(2) takes.
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(fd.get(), 4), 0);
    return fd;
  }
  void give(const std::string& socket) {
    x_config.nets = {NetConfig()};
    x_config.nets[0].socket = socket;
  }
  Result<> create() {
    Result<> result;
    x_thread.run_and_wait([&] {
      auto host = NetHost::create(x_config, x_thread.loop());
      if (!host) {
        result = Unexpected(host.error());
        return;
      }
      x_host = std::move(*host);
      x_host->set_listener([this](size_t net, bool up, const std::string& why) {
        const std::lock_guard lock(x_mutex);
        x_events.push_back(fmt::format("{} {} {}", net, up, why));
      });
      x_device = x_host->make_device(0).value();
    });
    return result;
  }
  std::vector<std::string> events() {
    const std::lock_guard lock(x_mutex);
    return x_events;
  }

  std::string x_dir;
  VmConfig x_config;
  IoThread x_thread{"net-host"};
  std::unique_ptr<NetHost> x_host;
  std::unique_ptr<NetDevice> x_device;
  std::mutex x_mutex;
  std::vector<std::string> x_events;
};

TEST_F(NetHostTest, connects_again_when_the_other_end_is_back) {
  give(x_dir + "/net.sock");
  UniqueFd listener = listen();
  const auto created = create();
  ASSERT_TRUE(created) << created.error().text;
  UniqueFd other(::accept(listener.get(), nullptr, nullptr));
  EXPECT_TRUE(x_device->link_up());
  listener.reset();
  std::filesystem::remove(x_dir + "/net.sock");
  other.reset();
  ASSERT_TRUE(eventually([&] { return events().size() == 1; }));
  EXPECT_EQ(events()[0], "0 false the other end closed the socket");
  EXPECT_FALSE(x_device->link_up());
  listener = listen();
  ASSERT_TRUE(eventually([&] { return events().size() == 2; }));
  EXPECT_THAT(events()[1], HasSubstr("0 true connected again after "));
  EXPECT_TRUE(x_device->link_up());
}

TEST_F(NetHostTest, says_what_a_card_misses) {
  give(x_dir + "/net.sock");
  EXPECT_THAT(create().error().text, HasSubstr("net.sock': No such file or directory"));
  give(std::string(200, 'x'));
  EXPECT_THAT(create().error().text, HasSubstr("longer than 107 bytes"));
  x_config.nets = {NetConfig()};
  x_config.nets[0].tap_fd = 999;
  EXPECT_THAT(create().error().text, HasSubstr("net.0.tap_fd = 999: Bad file descriptor"));
  const std::string path = ::getenv("PATH");
  ::setenv("PATH", "/nonexistent", 1);
  x_config.nets = {NetConfig()};
  x_config.nets[0].user = true;
  EXPECT_THAT(create().error().text, HasSubstr("install the package 'passt'"));
  ::setenv("PATH", path.c_str(), 1);
}

// A program called passt that ends at once, over and over.
TEST_F(NetHostTest, waits_longer_for_a_passt_that_ends_again_and_again) {
  const std::string program = x_dir + "/passt";
  FILE* const file = std::fopen(program.c_str(), "w");
  std::fputs("#!/bin/sh\necho 'Failed to send 3 bytes to syslog' >&2\necho 'no luck' >&2\nexit 3\n",
             file);
  std::fclose(file);
  std::filesystem::permissions(program, std::filesystem::perms::owner_all);
  const std::string path = ::getenv("PATH");
  ::setenv("PATH", (x_dir + ":" + path).c_str(), 1);
  x_config.nets = {NetConfig()};
  x_config.nets[0].user = true;
  const auto start = std::chrono::steady_clock::now();
  const auto created = create();
  ASSERT_TRUE(created) << created.error().text;
  ASSERT_TRUE(eventually([&] { return events().size() >= 7; }));
  ::setenv("PATH", path.c_str(), 1);
  EXPECT_EQ(events()[0], "0 false passt: exit code 3: no luck");
  EXPECT_THAT(events()[1], HasSubstr("0 true connected again"));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50 + 100 + 200));
}

}  // namespace
}  // namespace lethe
