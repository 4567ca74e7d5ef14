// The agent itself, over a socket pair: what it runs, what it refuses, how it ends.
#include "guest-tests/linux/exec/serve.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/test_util.h"
#include "guest-tests/linux/exec/request.h"
#include "vmm/exec/fake_vsock.h"
#include "vmm/exec/protocol.h"

namespace lethe::exec {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::StartsWith;

struct Heard {
  uint32_t pid = 0;
  std::string out, err, refused;
  std::optional<Exit> exit;
};

// A client of serve(), which runs on a thread. Each wait ends after 20 s.
class Session {
 public:
  explicit Session(milliseconds request_patience = kRequestPatience) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    x_client.reset(ends[0]);
    const timeval patience{20, 0};
    (void)::setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    x_thread =
        std::thread([fd = ends[1], request_patience] { serve(UniqueFd(fd), request_patience); });
  }
  explicit Session(const std::string& line) : Session() { say(line + "\n"); }
  ~Session() {
    x_client.reset();
    x_thread.join();
  }
  void say(const std::string& bytes) const { lethe::say(x_client, bytes); }
  void input(const std::string& text) const { say(frame(FrameType::kStdin, text)); }
  void close() { x_client.reset(); }
  // Reads one frame more into `heard`; false at the end.
  bool hear_one() {
    for (;;) {
      if (auto whole = x_frames.next()) {
        take(*whole);
        return true;
      }
      std::array<char, 65536> chunk;
      const ssize_t got = ::recv(x_client.get(), chunk.data(), chunk.size(), 0);
      if (got <= 0) return false;
      x_frames.feed({chunk.data(), static_cast<size_t>(got)});
    }
  }
  const Heard& hear() {
    while (hear_one()) {
    }
    return heard;
  }
  Heard heard;

 private:
  void take(const FrameReader::Frame& whole) {
    switch (whole.type) {
      case FrameType::kStarted:
        heard.pid = fields_of<Started>(whole.payload)->pid;
        break;
      case FrameType::kStdout:
        heard.out += whole.payload;
        break;
      case FrameType::kStderr:
        heard.err += whole.payload;
        break;
      case FrameType::kExit:
        heard.exit = fields_of<Exit>(whole.payload);
        break;
      case FrameType::kRefused:
        heard.refused = whole.payload;
        break;
      case FrameType::kStdin:
        ADD_FAILURE() << "a Stdin frame from the agent";
    }
  }

  UniqueFd x_client;
  FrameReader x_frames;
  std::thread x_thread;
};

// A request for `sh -c SCRIPT`; `more` are further keys, with a comma before each.
std::string shell(const std::string& script, const std::string& more = "") {
  return fmt::format(R"({{"version":1,"run":["sh","-c","{}"]{}}})", script, more);
}

void expect_exit(const Heard& heard, uint32_t how, uint32_t value) {
  ASSERT_TRUE(heard.exit) << heard.refused;
  EXPECT_EQ(heard.exit->how, how);
  EXPECT_EQ(heard.exit->value, value);
}

bool lives(uint32_t pid) { return ::kill(static_cast<pid_t>(pid), 0) == 0; }

TEST(ExecAgent, runs_a_command_and_tells_how_it_ended) {
  Session session(shell("echo out; echo err >&2; exit 3"));
  const Heard& heard = session.hear();
  EXPECT_EQ(heard.out, "out\n");
  EXPECT_EQ(heard.err, "err\n");
  EXPECT_GT(heard.pid, 0u);
  expect_exit(heard, 0, 3);
}

TEST(ExecAgent, tells_the_signal) {
  Session session(shell("kill -TERM $$"));
  expect_exit(session.hear(), 1, SIGTERM);
}

TEST(ExecAgent, the_command_has_the_environment_and_directory_that_were_asked_for) {
  ::setenv("LETHE_KEPT", "kept", 1);
  ::setenv("LETHE_SET", "old", 1);
  Session session(
      shell("echo $LETHE_KEPT $LETHE_SET; pwd", R"(,"env":{"LETHE_SET":"new"},"cwd":"/usr")"));
  EXPECT_EQ(session.hear().out, "kept new\n/usr\n");
}

TEST(ExecAgent, without_input_the_command_reads_an_end) {
  Session session(shell("cat; echo over"));
  EXPECT_EQ(session.hear().out, "over\n");
}

TEST(ExecAgent, input_goes_through_whole) {
  std::string text(3'000'000, 'a');
  for (size_t i = 0; i < text.size(); i += 7) text[i] = static_cast<char>('0' + i % 10);
  Session session(R"({"version":1,"run":["cat"],"stdin":true})");
  // cat's output is taken while its input is given: both ends are bounded.
  std::thread writer([&] {
    for (size_t at = 0; at < text.size(); at += 50'000) session.input(text.substr(at, 50'000));
    session.input("");
  });
  const Heard& heard = session.hear();
  writer.join();
  EXPECT_TRUE(heard.out == text) << heard.out.size();
  expect_exit(heard, 0, 0);
}

TEST(ExecAgent, a_command_that_reads_no_input_ends_all_the_same) {
  Session session(shell("exec <&-; sleep 0.05; echo done", ",\"stdin\":true"));
  std::thread writer([&] {
    for (int i = 0; i < 40; ++i) session.input(std::string(50'000, 'x'));
  });
  const Heard& heard = session.hear();
  writer.join();
  EXPECT_EQ(heard.out, "done\n");
  expect_exit(heard, 0, 0);
}

TEST(ExecAgent, much_output_comes_whole) {
  Session session(shell("head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2"));
  const Heard& heard = session.hear();
  EXPECT_EQ(heard.out.size(), 5'000'000u);
  EXPECT_EQ(heard.err.size(), 3'000'000u);
  expect_exit(heard, 0, 0);
}

TEST(ExecAgent, a_timeout_kills_the_whole_group) {
  Session session(shell("sleep 1000 & echo $!; wait", ",\"timeout_ms\":3000"));
  const Heard& heard = session.hear();
  expect_exit(heard, 2, 0);
  ASSERT_FALSE(heard.out.empty());
  EXPECT_TRUE(eventually([&] { return !lives(static_cast<uint32_t>(std::stoul(heard.out))); }));
}

TEST(ExecAgent, a_client_that_goes_ends_its_command) {
  Session session(shell("sleep 1000 & echo $!; wait"));
  while (session.heard.out.empty()) ASSERT_TRUE(session.hear_one());
  const auto child = static_cast<uint32_t>(std::stoul(session.heard.out));
  session.close();
  EXPECT_TRUE(eventually([&] { return !lives(child) && !lives(session.heard.pid); }));
}

TEST(ExecAgent, a_client_that_goes_while_output_waits_ends_its_command) {
  Session session(shell("echo $$; exec yes"));
  while (session.heard.out.empty()) ASSERT_TRUE(session.hear_one());
  const uint32_t pid = session.heard.pid;
  session.close();  // the socket is full of what was not read
  EXPECT_TRUE(eventually([&] { return !lives(pid); }));
}

TEST(ExecAgent, what_a_command_leaves_in_the_background_holds_nothing_up) {
  Session session(shell("sleep 1000 & echo $!"));
  const auto before = std::chrono::steady_clock::now();
  const Heard& heard = session.hear();
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(10));
  expect_exit(heard, 0, 0);
  const auto left = static_cast<uint32_t>(std::stoul(heard.out));
  EXPECT_TRUE(lives(left));
  ::kill(static_cast<pid_t>(left), SIGKILL);
}

TEST(ExecAgent, a_command_that_cannot_run_is_refused_with_its_reason) {
  Session missing(R"({"version":1,"run":["/no/such/program"]})");
  EXPECT_EQ(missing.hear().refused, "cannot run '/no/such/program': No such file or directory");
  Session directory(R"({"version":1,"run":["true"],"cwd":"/no/such"})");
  EXPECT_EQ(directory.hear().refused, "cannot change to '/no/such': No such file or directory");
}

TEST(ExecAgent, a_request_that_makes_no_sense_is_refused) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  for (const auto& [line, why] : std::vector<std::pair<std::string, std::string>>{
           {"", "no JSON"},
           {"GET / HTTP/1.1", "no JSON"},
           {deep, "no JSON"},
           {"[1]", "no JSON object"},
           {R"({"run":["true"]})", "'version' is missing"},
           {R"({"version":1})", "'run' is missing"},
           {R"({"version":2,"run":["true"]})", "speaks version 1 only"},
           {R"({"version":"1","run":["true"]})", "speaks version 1 only"},
           {R"({"version":1,"run":[]})", "'run' must be a list of texts"},
           {R"({"version":1,"run":[""]})", "'run' must be"},
           {R"({"version":1,"run":"true"})", "'run' must be"},
           {R"({"version":1,"run":["a\u0000b"]})", "'run' must be"},
           {R"({"version":1,"run":["true",1]})", "'run' must be"},
           {R"({"version":1,"run":["true"],"env":["A=1"]})", "'env' must be"},
           {R"({"version":1,"run":["true"],"env":{"A=":"1"}})", "'env' must be"},
           {R"({"version":1,"run":["true"],"env":{"":"1"}})", "'env' must be"},
           {R"({"version":1,"run":["true"],"cwd":7})", "'cwd' must be"},
           {R"({"version":1,"run":["true"],"stdin":1})", "'stdin' must be"},
           {R"({"version":1,"run":["true"],"timeout_ms":-1})", "'timeout_ms' must be"},
           {R"({"version":1,"run":["true"],"timeout_ms":1e3})", "'timeout_ms' must be"},
           {R"({"version":1,"run":["true"],"shell":"x"})", "unknown key"}}) {
    Session session(line);
    EXPECT_THAT(session.hear().refused, HasSubstr(why)) << line.substr(0, 80);
    EXPECT_EQ(session.heard.pid, 0u);
  }
}

TEST(ExecAgent, an_endless_request_is_refused_at_its_limit) {
  Session session;
  std::thread writer([&] { session.say(std::string(kRequestBytesMax + 100'000, ' ')); });
  EXPECT_EQ(session.hear().refused, "the request is too long");
  writer.join();
}

TEST(ExecAgent, a_request_that_does_not_come_is_not_waited_for) {
  Session session(milliseconds(100));
  session.say("{\"version\":1,");
  EXPECT_EQ(session.hear().refused, "the request did not come in time");
}

TEST(ExecAgent, a_client_that_sends_nonsense_ends_its_command) {
  for (const std::string& bytes : {std::string(8, '\xff'), frame(FrameType::kStdout, "x")}) {
    Session session(shell("exec sleep 1000"));
    ASSERT_TRUE(session.hear_one());
    const uint32_t pid = session.heard.pid;
    session.say(bytes);
    EXPECT_FALSE(session.hear().exit);
    EXPECT_TRUE(eventually([&] { return !lives(pid); }));
  }
}

TEST(ExecAgent, frames_may_come_with_the_request) {
  Session session;
  session.say("{\"version\":1,\"run\":[\"cat\"],\"stdin\":true}\n" +
              frame(FrameType::kStdin, "early") + frame(FrameType::kStdin, ""));
  const Heard& heard = session.hear();
  EXPECT_EQ(heard.out, "early");
  expect_exit(heard, 0, 0);
}

TEST(ExecAgent, arguments_are_bytes) {
  Session session("{\"version\":1,\"run\":[\"printf\",\"%s\",\"\xff\xfe\"]}");
  EXPECT_EQ(session.hear().out, "\xff\xfe");
}

}  // namespace
}  // namespace lethe::exec
