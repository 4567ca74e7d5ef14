// The program lethe-exec: it listens, serves clients side by side, and refuses one too many.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "base/test_util.h"
#include "base/unique_fd.h"
#include "guest-tests/linux/exec/server.h"
#include "vmm/exec/fake_vsock.h"
#include "vmm/exec/protocol.h"

namespace lethe::exec {
namespace {

class ExecServer : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-srv-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    x_path = x_dir + "/agent.sock";
    x_pid = ::fork();
    if (x_pid == 0) {
      ::execl(LETHE_EXEC_PROGRAM, "lethe-exec", "--unix", x_path.c_str(), nullptr);
      ::_exit(127);
    }
    ASSERT_TRUE(eventually([&] { return connect().valid(); }));
  }
  void TearDown() override {
    end_agent();
    std::filesystem::remove_all(x_dir);
  }
  void end_agent() {
    if (x_pid > 0) {
      ::kill(x_pid, SIGKILL);
      ::waitpid(x_pid, nullptr, 0);
    }
    x_pid = -1;
  }
  UniqueFd connect() const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    x_path.copy(address.sun_path, sizeof address.sun_path - 1);
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval patience{20, 0};
    (void)::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      fd.reset();
    return fd;
  }
  // The first frame that comes.
  static std::optional<FrameReader::Frame> hear(const UniqueFd& fd) {
    FrameReader frames;
    std::array<char, 4096> chunk;
    for (;;) {
      if (auto whole = frames.next()) return whole;
      const ssize_t got = ::recv(fd.get(), chunk.data(), chunk.size(), 0);
      if (got <= 0) return std::nullopt;
      frames.feed({chunk.data(), static_cast<size_t>(got)});
    }
  }

  std::string x_dir, x_path;
  pid_t x_pid = -1;
};

TEST_F(ExecServer, serves_many_at_once_refuses_one_more_and_goes_on) {
  std::vector<UniqueFd> clients;
  // Those of SetUp() may not be reaped yet.
  EXPECT_TRUE(eventually([&] {
    clients.clear();
    for (int i = 0; i < kConnectionsMax; ++i) {
      clients.push_back(connect());
      say(clients.back(), "{\"version\":1,\"run\":[\"cat\"],\"stdin\":true}\n");
    }
    for (const UniqueFd& client : clients) {
      const auto first = hear(client);
      if (!first || first->type != FrameType::kStarted) return false;
    }
    return true;
  }));
  const UniqueFd more = connect();
  const auto refusal = hear(more);
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->type, FrameType::kRefused);
  EXPECT_EQ(refusal->payload, "the agent serves its most clients already");
  // Each is served by itself, and they make room when they go.
  say(clients[40], frame(FrameType::kStdin, "hello"));
  const auto echo = hear(clients[40]);
  ASSERT_TRUE(echo);
  EXPECT_EQ(echo->payload, "hello");
  clients.clear();
  EXPECT_TRUE(eventually([&] {
    const UniqueFd again = connect();
    say(again, "{\"version\":1,\"run\":[\"true\"]}\n");
    const auto first = hear(again);
    return first && first->type == FrameType::kStarted;
  }));
}

TEST_F(ExecServer, an_agent_that_is_out_of_descriptors_for_a_while_serves_on) {
  rlimit limit{};
  ASSERT_EQ(::prlimit(x_pid, RLIMIT_NOFILE, nullptr, &limit), 0);
  const rlimit none{.rlim_cur = 0, .rlim_max = limit.rlim_max};
  ASSERT_EQ(::prlimit(x_pid, RLIMIT_NOFILE, &none, nullptr), 0);
  // An accept() that waits already may have its descriptor.
  const std::array<UniqueFd, 2> clients{connect(), connect()};
  for (const UniqueFd& client : clients) say(client, "{\"version\":1,\"run\":[\"true\"]}\n");
  // Nothing may come to the second one: as long as some tries take.
  pollfd silent{clients[1].get(), POLLIN, 0};
  EXPECT_EQ(::poll(&silent, 1, 300), 0) << "it was served, or the agent has ended";
  ASSERT_EQ(::prlimit(x_pid, RLIMIT_NOFILE, &limit, nullptr), 0);
  const auto first = hear(clients[1]);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->type, FrameType::kStarted);
}

TEST_F(ExecServer, who_is_served_still_does_not_hold_the_address_after_its_end) {
  const UniqueFd client = connect();
  say(client, "{\"version\":1,\"run\":[\"cat\"],\"stdin\":true}\n");
  ASSERT_TRUE(hear(client));
  end_agent();
  EXPECT_FALSE(connect().valid());
  say(client, frame(FrameType::kStdin, "hello"));
  const auto echo = hear(client);
  ASSERT_TRUE(echo);
  EXPECT_EQ(echo->payload, "hello");
}

TEST(ExecProgram, wrong_words_are_refused_and_help_is_given) {
  const auto code = [](const std::string& words) {
    return WEXITSTATUS(
        std::system((std::string(LETHE_EXEC_PROGRAM) + " " + words + " >/dev/null 2>&1").c_str()));
  };
  for (const char* words : {"--port", "--port x", "--port 0", "--port -1", "--prot 1", "now"})
    EXPECT_EQ(code(words), 2) << words;
  EXPECT_EQ(code("--unix /no/such/dir/agent.sock"), 1);
  EXPECT_EQ(code("--help"), 0);
}

}  // namespace
}  // namespace lethe::exec
