#include "base/unix_socket.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

namespace lethe {
namespace {

UniqueFd make_socket() {
  return UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

class UnixSocket : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(x_path); }
  const std::string x_path = testing::TempDir() + "unix-socket-" + std::to_string(::getpid());
};

TEST_F(UnixSocket, listens_for_its_user_only_and_is_connected_to) {
  const auto listener = listen_unix(x_path);
  ASSERT_TRUE(listener) << listener.error().text;
  struct stat status{};
  ASSERT_EQ(::stat(x_path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode, S_IFSOCK | 0600U);
  EXPECT_EQ(connect_unix(make_socket().get(), x_path), 0);
}

TEST_F(UnixSocket, path_that_is_there_or_too_long_is_named) {
  const auto listener = listen_unix(x_path);
  ASSERT_TRUE(listener);
  const auto second = listen_unix(x_path);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().text.find(x_path), std::string::npos);
  const std::string longest(107, 'a');
  EXPECT_FALSE(listen_unix("/" + longest));
  EXPECT_EQ(connect_unix(make_socket().get(), longest), -1);
  EXPECT_EQ(errno, ENOENT);
  EXPECT_EQ(connect_unix(make_socket().get(), longest + "a"), -1);
  EXPECT_EQ(errno, ENAMETOOLONG);
}

TEST_F(UnixSocket, connecting_to_nobody_says_so) {
  EXPECT_EQ(connect_unix(make_socket().get(), x_path), -1);
  EXPECT_EQ(errno, ENOENT);
  {
    (void)listen_unix(x_path);
  }
  EXPECT_EQ(connect_unix(make_socket().get(), x_path), -1);
  EXPECT_EQ(errno, ECONNREFUSED);
}

}  // namespace
}  // namespace lethe
