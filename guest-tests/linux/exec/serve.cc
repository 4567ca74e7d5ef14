#include "guest-tests/linux/exec/serve.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>

#include "guest-tests/linux/exec/command.h"
#include "guest-tests/linux/exec/request.h"
#include "vmm/exec/protocol.h"

namespace lethe::exec {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPipeBytesMax = 1 << 20;  // what a pipe may hold: /proc/sys/fs/pipe-max-size

bool again() { return errno == EAGAIN || errno == EINTR; }

int left_ms(Clock::time_point end) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, INT32_MAX));
}

// Reads up to the newline; what came behind it stays in `rest`.
tl::expected<std::string, std::string> read_line(const UniqueFd& socket,
                                                 std::chrono::milliseconds patience,
                                                 std::string& rest) {
  const auto end = Clock::now() + patience;
  std::array<char, 4096> chunk;
  for (;;) {
    if (const size_t newline = rest.find('\n'); newline != std::string::npos) {
      std::string line = rest.substr(0, newline);
      rest.erase(0, newline + 1);
      return line;
    }
    if (rest.size() >= kRequestBytesMax)
      return tl::unexpected<std::string>("the request is too long");
    pollfd waiting{socket.get(), POLLIN, 0};
    const int left = left_ms(end);
    if (left == 0) return tl::unexpected<std::string>("the request did not come in time");
    if (::poll(&waiting, 1, left) < 0 && errno != EINTR)
      return tl::unexpected<std::string>("poll failed");
    if (waiting.revents == 0) continue;
    const ssize_t got = ::recv(socket.get(), chunk.data(), chunk.size(), 0);
    if (got < 0 && again()) continue;
    if (got <= 0) return tl::unexpected<std::string>("");  // it has gone: no one to tell
    rest.append(chunk.data(), static_cast<size_t>(got));
  }
}

class Connection {
 public:
  Connection(const UniqueFd& socket, Command command, std::string rest,
             std::chrono::milliseconds timeout)
      : x_socket(socket), x_command(std::move(command)) {
    if (timeout.count() > 0) x_end = Clock::now() + timeout;
    x_frames.feed(rest);
    x_out =
        frame_of(FrameType::kStarted, Started{kVersion, static_cast<uint32_t>(x_command.pid())});
  }

  void run() {
    take_frames();  // those that came with the request
    while (!x_gone && !x_ended) turn();
    if (x_gone) return;  // ~Command kills
    // What was written before the end, and no more: others may have the pipes still.
    for (auto [fd, type] : {std::pair(&x_command.output, FrameType::kStdout),
                            std::pair(&x_command.errors, FrameType::kStderr)}) {
      for (size_t drained = 0; drained < kPipeBytesMax && fd->valid();) {
        const size_t got = pass_on(*fd, type);
        if (got == 0) break;
        if (!flush()) return;
        drained += got;
      }
    }
    x_out = frame_of(FrameType::kExit, x_exit);
    (void)flush();
  }

 private:
  enum Slot { kSocket, kProcess, kInput, kOutput, kErrors, kSlots };

  void turn() {
    std::array<pollfd, kSlots> slots;
    // Reads on from the client when the command has taken what came before, and from the command
    // when the client has.
    const bool room = x_out.empty();
    const int client = POLLRDHUP | (x_input.empty() ? POLLIN : 0) | (room ? 0 : POLLOUT);
    slots[kSocket] = {x_socket.get(), static_cast<short>(client), 0};
    slots[kProcess] = {x_command.pidfd.get(), POLLIN, 0};
    slots[kInput] = {x_input.empty() ? -1 : x_command.input.get(), POLLOUT, 0};
    slots[kOutput] = {room ? x_command.output.get() : -1, POLLIN, 0};
    slots[kErrors] = {room ? x_command.errors.get() : -1, POLLIN, 0};
    if (::poll(slots.data(), slots.size(), x_end ? left_ms(*x_end) : -1) < 0 && errno != EINTR) {
      x_gone = true;
      return;
    }
    if (x_end && Clock::now() >= *x_end && !x_timed_out) {
      x_timed_out = true;
      x_end.reset();
      x_command.kill_group();
    }
    if (slots[kSocket].revents != 0) serve_socket(slots[kSocket].revents);
    if (slots[kInput].revents != 0) give_input();
    if (slots[kOutput].revents != 0) (void)pass_on(x_command.output, FrameType::kStdout);
    if (x_out.empty() && slots[kErrors].revents != 0)
      (void)pass_on(x_command.errors, FrameType::kStderr);
    if (slots[kProcess].revents != 0) process_ended();
  }

  void serve_socket(short events) {
    if ((events & (POLLHUP | POLLERR | POLLRDHUP)) != 0) x_gone = true;
    if ((events & POLLOUT) != 0 && !send_some()) x_gone = true;
    if ((events & POLLIN) == 0 || x_gone) return;
    std::array<char, 16384> chunk;
    const ssize_t got = ::recv(x_socket.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (got == 0 || (got < 0 && !again())) x_gone = true;
    if (got <= 0) return;
    x_frames.feed({chunk.data(), static_cast<size_t>(got)});
    take_frames();
  }

  // Until one has bytes for the command: they go before what is behind it.
  void take_frames() {
    while (x_input.empty() && !x_gone) {
      auto whole = x_frames.next();
      if (!whole) break;
      if (whole->type != FrameType::kStdin) x_gone = true;
      if (!x_command.input.valid()) continue;  // closed, or never there
      if (whole->payload.empty()) x_command.input.reset();
      x_input = std::move(whole->payload);
    }
    if (x_frames.broken()) x_gone = true;
  }

  void give_input() {
    const ssize_t wrote = ::write(x_command.input.get(), x_input.data(), x_input.size());
    if (wrote < 0 && again()) return;
    if (wrote < 0) {  // EPIPE: the command reads no more
      x_command.input.reset();
      x_input.clear();
    } else {
      x_input.erase(0, static_cast<size_t>(wrote));
    }
    take_frames();
  }

  // From the pipe into x_out, which must be empty. Returns how much.
  size_t pass_on(UniqueFd& pipe, FrameType type) {
    std::array<char, kFrameBytesMax> chunk;
    const ssize_t got = ::read(pipe.get(), chunk.data(), chunk.size());
    if (got < 0 && again()) return 0;
    if (got <= 0) {
      pipe.reset();
      return 0;
    }
    x_out = frame(type, {chunk.data(), static_cast<size_t>(got)});
    return static_cast<size_t>(got);
  }

  // False: the client has gone.
  bool send_some() {
    const ssize_t sent =
        ::send(x_socket.get(), x_out.data(), x_out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) return again();
    x_out.erase(0, static_cast<size_t>(sent));
    return true;
  }

  // However long the client takes: it may be a pager. False: it has gone.
  bool flush() {
    while (!x_out.empty()) {
      pollfd waiting{x_socket.get(), POLLOUT | POLLRDHUP, 0};
      if (::poll(&waiting, 1, -1) < 0 && errno != EINTR) return false;
      if ((waiting.revents & (POLLERR | POLLHUP | POLLRDHUP)) != 0 || !send_some()) return false;
    }
    return true;
  }

  void process_ended() {
    const int status = x_command.reap();
    x_ended = true;
    if (WIFSIGNALED(status))
      x_exit = {static_cast<uint32_t>(ExitHow::kSignalled),
                static_cast<uint32_t>(WTERMSIG(status))};
    else
      x_exit = {static_cast<uint32_t>(ExitHow::kExited),
                static_cast<uint32_t>(WEXITSTATUS(status))};
    if (x_timed_out) x_exit = {static_cast<uint32_t>(ExitHow::kTimedOut), 0};
    if (!flush()) x_gone = true;
  }

  const UniqueFd& x_socket;
  Command x_command;
  std::optional<Clock::time_point> x_end;
  FrameReader x_frames;
  std::string x_input;  // for the command
  std::string x_out;    // for the client
  bool x_gone = false;  // the client has gone, or made no sense
  bool x_ended = false;
  bool x_timed_out = false;
  Exit x_exit{};
};

}  // namespace

void refuse(const UniqueFd& socket, const char* why) {
  std::string text(why);
  text.resize(std::min(text.size(), kRefusalBytesMax));
  const std::string bytes = frame(FrameType::kRefused, text);
  (void)!::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

void serve(UniqueFd socket, std::chrono::milliseconds request_patience) {
  // A command that closes its input is an error of write(), not our end.
  (void)::signal(SIGPIPE, SIG_IGN);
  std::string rest;
  const auto line = read_line(socket, request_patience, rest);
  if (!line) {
    if (!line.error().empty()) refuse(socket, line.error().c_str());
    return;
  }
  auto request = parse_request(*line);
  if (!request) return refuse(socket, request.error().c_str());
  auto command = Command::start(*request);
  if (!command) return refuse(socket, command.error().c_str());
  Connection(socket, std::move(*command), std::move(rest), request->timeout).run();
}

}  // namespace lethe::exec
