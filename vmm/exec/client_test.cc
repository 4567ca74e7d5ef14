// The host's end of the exec agent, with scripted guests that keep to the protocol, or do not.
#include "vmm/exec/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/test_util.h"
#include "vmm/exec/fake_vsock.h"

namespace lethe {
namespace {

using exec::FrameType;
using How = ExecEnd::How;
using std::chrono::milliseconds;
using testing::HasSubstr;

std::string hear_line(const UniqueFd& fd) {
  std::string line;
  char c = 0;
  while (::recv(fd.get(), &c, 1, 0) == 1 && c != '\n') line += c;
  return line;
}

// Until the client has closed.
void wait_for_end(const UniqueFd& fd) {
  char chunk[4096];
  while (::recv(fd.get(), chunk, sizeof chunk, 0) > 0) {
  }
}

const std::string kStartedFrame = exec::frame_of(FrameType::kStarted, exec::Started{1, 42});

std::string exit_frame(uint32_t how, uint32_t value) {
  return exec::frame_of(FrameType::kExit, exec::Exit{how, value});
}

class ExecClientTest : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-exec-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
  }
  void TearDown() override { std::filesystem::remove_all(x_dir); }
  [[nodiscard]] std::string socket() const { return x_dir + "/vsock.sock"; }

  // Runs a client to its end, at most for 20 s.
  ExecEnd run(const ExecRequest& request = {.run = {"true"}}, milliseconds patience = {}) {
    EventLoop loop;
    ExecEnd end{.text = "the test's own patience is over"};
    std::unique_ptr<ExecClient> client;
    ExecClient::Handlers handlers;
    handlers.started = [&] { ++x_started; };
    handlers.output = [&](std::string_view bytes, bool is_error) {
      (is_error ? x_err : x_out) += bytes;
      if (x_out.size() > x_end_after) client->end({How::kLost, 0, "enough"});
    };
    handlers.wants_input = [&] {
      if (x_input_at > x_input.size()) return;
      const std::string piece = x_input.substr(x_input_at, exec::kFrameBytesMax);
      x_input_at += piece.empty() ? 1 : piece.size();
      client->send_input(piece);
    };
    handlers.ended = [&](ExecEnd how) {
      end = std::move(how);
      loop.stop();
    };
    client = std::make_unique<ExecClient>(
        loop, ExecClient::Options{.socket = socket(), .port = 1024, .patience = patience}, request,
        handlers);
    const auto guard = loop.make_timer([&] { loop.stop(); });
    guard->start(std::chrono::seconds(20));
    loop.run();
    return end;
  }
  // What becomes of a guest that says `bytes` after the request, and nothing more.
  ExecEnd run_against(const std::string& bytes) {
    const FakeVsock vsock(socket(), [&](const UniqueFd& fd) {
      x_request = hear_line(fd);
      say(fd, bytes);
      wait_for_end(fd);
    });
    return run();
  }

  std::string x_dir;
  std::string x_request, x_out, x_err, x_input;
  size_t x_input_at = 0;
  size_t x_end_after = SIZE_MAX;
  int x_started = 0;
};

TEST_F(ExecClientTest, a_command_is_run_and_its_output_streamed) {
  const ExecEnd end = run_against(kStartedFrame + exec::frame(FrameType::kStdout, "out") +
                                  exec::frame(FrameType::kStderr, "err") +
                                  exec::frame(FrameType::kStdout, "put") + exit_frame(0, 3));
  EXPECT_EQ(end.how, How::kExited) << describe(end);
  EXPECT_EQ(end.value, 3u);
  EXPECT_EQ(x_out, "output");
  EXPECT_EQ(x_err, "err");
  EXPECT_EQ(x_started, 1);
  EXPECT_EQ(x_request, R"({"version":1,"run":["true"]})");
}

TEST_F(ExecClientTest, the_request_has_all_that_was_asked) {
  const auto line = exec_request_line({.run = {"a \"b\"", "c\n"},
                                       .env = {"A=1=2", "B="},
                                       .cwd = "/tmp",
                                       .takes_stdin = true,
                                       .timeout = milliseconds(1500)});
  ASSERT_TRUE(line);
  EXPECT_EQ(*line,
            "{\"version\":1,\"run\":[\"a \\\"b\\\"\",\"c\\u000a\"],\"env\":{\"A\":\"1=2\","
            "\"B\":\"\"},\"cwd\":\"/tmp\",\"stdin\":true,\"timeout_ms\":1500}\n");
  EXPECT_THAT(exec_request_line({.run = {"a"}, .env = {"=1"}}).error().text,
              HasSubstr("write NAME=value"));
  EXPECT_THAT(exec_request_line({.run = {std::string(300'000, 'x')}}).error().text,
              HasSubstr("more than the agent's 262144"));
}

TEST_F(ExecClientTest, signal_and_timeout_are_told_apart) {
  const ExecEnd killed = run_against(kStartedFrame + exit_frame(1, 9));
  EXPECT_EQ(describe(killed), "killed by signal 9 (Killed)");
  const ExecEnd late = run_against(kStartedFrame + exit_frame(2, 0));
  EXPECT_EQ(late.how, How::kTimedOut);
}

TEST_F(ExecClientTest, a_refusal_is_told_and_printable) {
  const ExecEnd end = run_against(exec::frame(FrameType::kRefused, "no\x1b[31m such"));
  EXPECT_EQ(end.how, How::kRefused);
  EXPECT_EQ(end.text, "no\\x1b[31m such");
}

TEST_F(ExecClientTest, a_guest_that_breaks_the_protocol_is_told_so) {
  const std::string too_long = {1, 0, 0, 0, 1, 0, 1, 0};  // 64 KiB and one byte
  const std::string huge = {2, 0, 0, 0, '\xff', '\xff', '\xff', '\xff'};
  for (const std::string& bytes :
       {too_long, huge, std::string(8, '\0'), std::string(8, '\xff'), kStartedFrame + kStartedFrame,
        exit_frame(0, 0), exec::frame(FrameType::kStdout, "x"),
        exec::frame(FrameType::kStarted, "x"), kStartedFrame + exit_frame(3, 0),
        kStartedFrame + exit_frame(0, 256), kStartedFrame + exit_frame(1, 0),
        kStartedFrame + exit_frame(1, 65), kStartedFrame + exec::frame(FrameType::kExit, "short"),
        kStartedFrame + exec::frame(FrameType::kStdin, "x"),
        kStartedFrame + exec::frame(FrameType::kRefused, "late")}) {
    const ExecEnd end = run_against(bytes);
    EXPECT_EQ(end.how, How::kNonsense) << testing::PrintToString(bytes) << describe(end);
  }
  const ExecEnd newer = run_against(exec::frame_of(FrameType::kStarted, exec::Started{2, 1}));
  EXPECT_EQ(describe(newer), "the agent refuses: it speaks version 2");
}

TEST_F(ExecClientTest, a_connection_that_ends_early_is_lost) {
  for (const std::string& bytes : {std::string(), kStartedFrame, kStartedFrame.substr(0, 5)}) {
    const FakeVsock vsock(socket(), [&](const UniqueFd& fd) {
      (void)hear_line(fd);
      say(fd, bytes);
    });
    EXPECT_EQ(run().how, How::kLost);
  }
}

TEST_F(ExecClientTest, an_answer_to_connect_that_is_none_is_nonsense) {
  const FakeVsock vsock(socket(), nullptr);
  // The fake closes at once: nobody listens.
  const ExecEnd nobody = run();
  EXPECT_EQ(nobody.how, How::kNoAgent);
  EXPECT_THAT(nobody.text, HasSubstr("nobody listens at vsock port 1024"));
}

TEST_F(ExecClientTest, without_a_socket_there_is_no_agent) {
  const ExecEnd end = run();
  EXPECT_EQ(end.how, How::kNoAgent);
  EXPECT_THAT(end.text, HasSubstr("vsock.sock': No such file"));
}

TEST_F(ExecClientTest, it_waits_for_an_agent_that_comes_late) {
  std::optional<FakeVsock> vsock(std::in_place, socket(), nullptr);
  std::thread later([&] {
    // It has tried in vain; then there is no socket for a moment, too.
    EXPECT_TRUE(eventually([&] { return vsock->connections() >= 2; }));
    vsock.reset();
    vsock.emplace(socket(), [](const UniqueFd& fd) {
      (void)hear_line(fd);
      say(fd, kStartedFrame + exit_frame(0, 0));
      wait_for_end(fd);
    });
  });
  const ExecEnd end = run({.run = {"true"}}, milliseconds(15'000));
  later.join();
  EXPECT_EQ(end.how, How::kExited) << describe(end);
  EXPECT_EQ(vsock->last_port(), 1024u);
}

TEST_F(ExecClientTest, patience_has_an_end) {
  const FakeVsock vsock(socket(), nullptr);
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(run({.run = {"true"}}, milliseconds(300)).how, How::kNoAgent);
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(5));
  EXPECT_GE(vsock.connections(), 2);
}

TEST_F(ExecClientTest, a_silent_guest_meets_the_timeout) {
  const FakeVsock vsock(socket(), [](const UniqueFd& fd) { wait_for_end(fd); });
  EXPECT_EQ(run({.run = {"true"}, .timeout = milliseconds(100)}).how, How::kTimedOut);
}

TEST_F(ExecClientTest, an_endless_output_is_ended_by_who_reads_it) {
  const FakeVsock vsock(socket(), [](const UniqueFd& fd) {
    (void)hear_line(fd);
    say(fd, kStartedFrame);
    const std::string flood = exec::frame(FrameType::kStdout, std::string(65536, 'x'));
    while (::send(fd.get(), flood.data(), flood.size(), MSG_NOSIGNAL) > 0) {
    }
  });
  x_end_after = 1 << 20;
  EXPECT_EQ(run().text, "enough");
  EXPECT_LE(x_out.size(), (1u << 20) + 65536);
}

TEST_F(ExecClientTest, input_arrives_whole_and_in_order) {
  x_input.resize(1'000'000);
  for (size_t i = 0; i < x_input.size(); ++i) x_input[i] = static_cast<char>(i * 7 / 3);
  std::string arrived;
  const FakeVsock vsock(socket(), [&](const UniqueFd& fd) {
    (void)hear_line(fd);
    say(fd, kStartedFrame);
    exec::FrameReader frames;
    std::array<char, 4096> chunk;
    for (bool open = true; open;) {
      const ssize_t got = ::recv(fd.get(), chunk.data(), chunk.size(), 0);
      if (got <= 0) return;
      frames.feed({chunk.data(), static_cast<size_t>(got)});
      while (const auto frame = frames.next()) {
        if (frame->type != FrameType::kStdin) return;
        arrived += frame->payload;
        open = !frame->payload.empty();
      }
    }
    say(fd, exit_frame(0, 0));
    wait_for_end(fd);
  });
  const ExecEnd end = run({.run = {"cat"}, .takes_stdin = true});
  EXPECT_EQ(end.how, How::kExited) << describe(end);
  EXPECT_EQ(arrived.size(), x_input.size());
  EXPECT_TRUE(arrived == x_input);
}

TEST(ExecFrames, bytes_one_by_one_make_the_same_frames) {
  exec::FrameReader frames;
  const std::string bytes =
      exec::frame(FrameType::kStdout, "abc") + exec::frame(FrameType::kStderr, "");
  std::vector<std::string> got;
  for (const char c : bytes) {
    frames.feed({&c, 1});
    while (const auto frame = frames.next()) got.push_back(frame->payload);
  }
  EXPECT_THAT(got, testing::ElementsAre("abc", ""));
  EXPECT_FALSE(frames.broken());
}

}  // namespace
}  // namespace lethe
