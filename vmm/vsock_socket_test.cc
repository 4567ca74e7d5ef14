#include "vmm/vsock_socket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>

namespace lethe {
namespace {

using ::testing::HasSubstr;

class VsockSocketTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-vsock-socket-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
  }
  void TearDown() override { std::filesystem::remove_all(x_dir); }
  [[nodiscard]] std::string path() const { return x_dir + "/v.sock"; }
  std::string x_dir;
};

TEST_F(VsockSocketTest, listens_with_the_owners_rights_alone_and_is_removed_at_its_end) {
  {
    const auto socket = make_vsock_socket(path());
    ASSERT_TRUE(socket) << socket.error().text;
    EXPECT_EQ(std::filesystem::status(path()).permissions(),
              std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  }
  EXPECT_FALSE(std::filesystem::exists(path()));
}

TEST_F(VsockSocketTest, one_elsewhere_is_found_through_the_run_time_directory) {
  const auto run_dir = RunDir::create("vm", {.xdg = x_dir, .run_user = {}, .temporary = {}});
  ASSERT_TRUE(run_dir) << run_dir.error().text;
  const std::string usual = run_dir->path() + "/" + kVsockSocketName;
  VmConfig config;
  config.vsock.enabled = true;
  config.vsock.path = path();
  {
    const auto socket = make_vsock_socket(config, *run_dir);
    ASSERT_TRUE(socket) << socket.error().text;
    EXPECT_EQ(std::filesystem::read_symlink(usual), path());
    const UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    usual.copy(address.sun_path, sizeof address.sun_path - 1);
    // SAFETY: a sockaddr_un is given as the sockaddr that connect() wants, with its size.
    EXPECT_EQ(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
              0);
  }
  std::filesystem::remove(usual);
  config.vsock.path = usual;  // said, though it is the default
  EXPECT_TRUE(make_vsock_socket(config, *run_dir));
}

TEST_F(VsockSocketTest, replaces_a_socket_that_a_crash_left_behind) {
  {
    const UniqueFd gone(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path().copy(address.sun_path, sizeof address.sun_path - 1);
    // SAFETY: a sockaddr_un is given as the sockaddr that bind() wants, with its size.
    ASSERT_EQ(::bind(gone.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  EXPECT_TRUE(make_vsock_socket(path()));
}

TEST_F(VsockSocketTest, takes_no_socket_from_who_listens_on_it) {
  const auto first = make_vsock_socket(path());
  ASSERT_TRUE(first);
  const auto second = make_vsock_socket(path());
  ASSERT_FALSE(second);
  EXPECT_THAT(second.error().text, HasSubstr("cannot listen on '" + path() + "'"));
  EXPECT_TRUE(std::filesystem::exists(path()));
}

TEST_F(VsockSocketTest, keeps_files_that_are_no_sockets) {
  std::ofstream(path()) << "precious";
  EXPECT_FALSE(make_vsock_socket(path()));
  EXPECT_EQ(std::filesystem::file_size(path()), 8U);
}

TEST_F(VsockSocketTest, path_must_leave_room_for_every_port) {
  const std::string longest = x_dir + "/" + std::string(107 - 11 - x_dir.size() - 1, 'v');
  EXPECT_TRUE(make_vsock_socket(longest));
  const auto socket = make_vsock_socket(longest + "v");
  ASSERT_FALSE(socket);
  EXPECT_THAT(socket.error().text, HasSubstr("set vsock.path to at most 96 bytes"));
}

}  // namespace
}  // namespace lethe
