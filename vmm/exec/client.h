// The host's end of the exec agent: runs one command in a guest, through the VM's vsock.sock in
// Firecracker's way ("CONNECT PORT\n", answered by "OK HOSTPORT\n"). The guest is hostile: what
// comes is binary frames of bounded size (vmm/exec/protocol.h), no JSON; anything else ends it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "vmm/exec/protocol.h"

namespace lethe {

struct ExecRequest {
  std::vector<std::string> run;    // at least one, none with a zero
  std::vector<std::string> env{};  // "NAME=value"
  std::string cwd{};               // empty: the agent's
  bool takes_stdin = false;
  std::chrono::milliseconds timeout{0};  // from the request on, in the guest and here; 0: none
};

// The line that asks the agent for it, with its newline. Fails when it is too long for the agent.
[[nodiscard]] Result<std::string> exec_request_line(const ExecRequest& request);

struct ExecEnd {
  enum class How : uint8_t {
    kExited,     // value: the exit code
    kSignalled,  // value: the signal
    kTimedOut,
    kRefused,  // text: why the agent does not run it
    kNoAgent,  // nobody has answered in time; text: what was tried last
    kLost,     // the connection ended before the command did
    kNonsense  // text: what the guest sent, which no agent does
  };
  How how = How::kLost;
  uint32_t value = 0;
  std::string text;  // one line, printable
};

// "exit code 2", "killed by signal 9 (Killed)", "timeout", ...
[[nodiscard]] std::string describe(const ExecEnd& end);

// Threading: the loop's thread.
class ExecClient {
 public:
  struct Options {
    std::string socket;  // the path of vsock.sock
    uint32_t port = exec::kAgentPort;
    // How long to try again while no agent answers; 0: once.
    std::chrono::milliseconds patience{0};
  };
  struct Handlers {
    std::function<void()> started = [] {};
    // Bytes of stdout or (is_error) stderr.
    std::function<void(std::string_view bytes, bool is_error)> output = [](std::string_view, bool) {
    };
    // What send_input() was given is on its way, and more may come.
    std::function<void()> wants_input = [] {};
    // Called once, from the loop; it may destroy the client.
    std::function<void(ExecEnd)> ended;
  };

  ExecClient(EventLoop& loop, Options options, const ExecRequest& request, Handlers handlers);
  // A command that still runs is killed by the agent, which sees the connection's end.
  ~ExecClient();
  ExecClient(const ExecClient&) = delete;
  ExecClient& operator=(const ExecClient&) = delete;

  // After `started`; at most exec::kFrameBytesMax, and only once for each call of `wants_input`
  // (which is called for the first time after `started`). Empty: the input's end.
  void send_input(std::string_view bytes);
  // Ends it so, with `ended` called from the loop; nothing, if it has ended.
  void end(ExecEnd how);

  static constexpr std::chrono::milliseconds kRetryEvery{100};
  // For an answer to CONNECT: a guest whose driver is not there yet says nothing.
  static constexpr std::chrono::milliseconds kAnswerPatience{5'000};

 private:
  enum class State : uint8_t { kConnecting, kAsking, kRunning, kEnded };

  void connect();
  void try_failed(std::string why);
  [[nodiscard]] Result<> open_socket();
  void watch();
  void readable();
  void take(std::string_view bytes);
  void take_answer();
  void take_frames();
  void take_frame(const exec::FrameReader::Frame& frame);
  void send(std::string bytes);
  void flush();
  void connection_ended(int error);

  EventLoop& x_loop;
  const Options x_options;
  const std::chrono::milliseconds x_timeout;
  const bool x_takes_stdin;
  std::string x_request_line;
  Handlers x_handlers;
  const std::chrono::steady_clock::time_point x_give_up_at;
  State x_state = State::kConnecting;
  bool x_started = false;
  UniqueFd x_socket;
  std::string x_answer;  // to CONNECT, as far as it has come
  exec::FrameReader x_frames;
  std::string x_out;
  std::unique_ptr<EventLoop::Watch> x_read_watch;
  std::unique_ptr<EventLoop::Watch> x_write_watch;
  std::unique_ptr<EventLoop::Timer> x_retry_timer;
  std::unique_ptr<EventLoop::Timer> x_answer_timer;
  std::unique_ptr<EventLoop::Timer> x_timeout_timer;
  std::shared_ptr<bool> x_alive = std::make_shared<bool>(true);  // for posted work
};

}  // namespace lethe
