#include "vmm/exec/client.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <array>
#include <cstring>

#include "base/assert.h"
#include "base/unix_socket.h"
#include "vmm/api/http_server.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

using exec::FrameType;
using How = ExecEnd::How;

constexpr size_t kAnswerBytesMax = 32;  // "OK 4294967295\n"
constexpr size_t kReadBytes = 64 << 10;
constexpr int kReadsPerWake = 16;  // then others get their turn

}  // namespace

Result<std::string> exec_request_line(const ExecRequest& request) {
  std::string run;
  for (const std::string& word : request.run) run += (run.empty() ? "" : ",") + json_quote(word);
  std::string env;
  for (const std::string& entry : request.env) {
    const size_t equals = entry.find('=');
    if (equals == 0 || equals == std::string::npos)
      return config_error("'{}' is no environment variable: write NAME=value", printable(entry));
    env += fmt::format("{}{}:{}", env.empty() ? "" : ",", json_quote(entry.substr(0, equals)),
                       json_quote(entry.substr(equals + 1)));
  }
  std::string line = fmt::format(R"({{"version":{},"run":[{}])", exec::kVersion, run);
  if (!env.empty()) line += fmt::format(R"(,"env":{{{}}})", env);
  if (!request.cwd.empty()) line += ",\"cwd\":" + json_quote(request.cwd);
  if (request.takes_stdin) line += ",\"stdin\":true";
  if (request.timeout.count() > 0)
    line += fmt::format(",\"timeout_ms\":{}", request.timeout.count());
  line += "}\n";
  if (line.size() > exec::kRequestBytesMax)
    return config_error("the command is {} bytes long, more than the agent's {}", line.size(),
                        exec::kRequestBytesMax);
  return line;
}

std::string describe(const ExecEnd& end) {
  switch (end.how) {
    case How::kExited:
      return fmt::format("exit code {}", end.value);
    case How::kSignalled: {
      const char* name = ::sigdescr_np(static_cast<int>(end.value));
      return fmt::format("killed by signal {}{}", end.value,
                         name == nullptr ? "" : fmt::format(" ({})", name));
    }
    case How::kTimedOut:
      return "timeout";
    case How::kRefused:
      return "the agent refuses: " + end.text;
    case How::kNoAgent:
      return "no agent answers: " + end.text;
    case How::kLost:
      return "the connection ended before the command did";
    case How::kNonsense:
      return "the guest is no agent: " + end.text;
  }
  return "";
}

ExecClient::ExecClient(EventLoop& loop, Options options, const ExecRequest& request,
                       Handlers handlers)
    : x_loop(loop),
      x_options(std::move(options)),
      x_timeout(request.timeout),
      x_takes_stdin(request.takes_stdin),
      x_handlers(std::move(handlers)),
      x_give_up_at(std::chrono::steady_clock::now() + x_options.patience) {
  x_retry_timer = loop.make_timer([this] { connect(); });
  x_answer_timer = loop.make_timer(
      [this] { try_failed(fmt::format("no answer within {} ms", kAnswerPatience.count())); });
  x_timeout_timer = loop.make_timer([this] { end({How::kTimedOut, 0, ""}); });
  if (auto line = exec_request_line(request)) {
    x_request_line = std::move(*line);
    connect();
  } else {
    end({How::kRefused, 0, line.error().text});
  }
}

ExecClient::~ExecClient() { *x_alive = false; }

void ExecClient::end(ExecEnd how) {
  if (x_state == State::kEnded) return;
  x_state = State::kEnded;
  x_read_watch.reset();
  x_write_watch.reset();
  for (const auto& timer : {x_retry_timer.get(), x_answer_timer.get(), x_timeout_timer.get()})
    timer->cancel();
  x_socket.reset();
  // Posted: `ended` may destroy this object, which callbacks above us still use.
  x_loop.post([this, alive = x_alive, how = std::move(how)] {
    if (!*alive) return;
    const auto ended = std::move(x_handlers.ended);
    ended(how);
  });
}

void ExecClient::connect() {
  if (auto opened = open_socket(); !opened) return try_failed(opened.error().text);
  x_state = State::kAsking;
  x_answer.clear();
  x_answer_timer->start(kAnswerPatience);
  watch();
  if (x_state == State::kAsking) send(fmt::format("CONNECT {}\n", x_options.port));
}

Result<> ExecClient::open_socket() {
  x_socket.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!x_socket.valid()) return host_error("cannot make a socket: {}", errno_text(errno));
  if (connect_unix(x_socket.get(), x_options.socket) != 0)
    return host_error("'{}': {}", printable(x_options.socket), errno_text(errno));
  return {};
}

void ExecClient::try_failed(std::string why) {
  x_read_watch.reset();
  x_write_watch.reset();
  x_answer_timer->cancel();
  x_socket.reset();
  x_out.clear();
  x_state = State::kConnecting;
  if (std::chrono::steady_clock::now() + kRetryEvery > x_give_up_at)
    return end({How::kNoAgent, 0, std::move(why)});
  x_retry_timer->start(kRetryEvery);
}

void ExecClient::watch() {
  auto read = x_loop.watch_readable(x_socket.get(), [this] { readable(); });
  if (!read) return try_failed(read.error().text);
  x_read_watch = std::move(*read);
}

void ExecClient::readable() {
  std::array<char, kReadBytes> chunk;
  for (int i = 0; i < kReadsPerWake && x_socket.valid(); ++i) {
    const ssize_t got = ::recv(x_socket.get(), chunk.data(), chunk.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return connection_ended(got < 0 ? errno : 0);
    take({chunk.data(), static_cast<size_t>(got)});
  }
}

void ExecClient::connection_ended(int error) {
  if (x_state == State::kAsking)
    return try_failed(
        error == 0 || error == ECONNRESET
            ? fmt::format("nobody listens at vsock port {} of the guest", x_options.port)
            : errno_text(error));
  end({How::kLost, 0, ""});
}

void ExecClient::take(std::string_view bytes) {
  if (x_state == State::kRunning) {
    x_frames.feed(bytes);
    return take_frames();
  }
  x_answer.append(bytes);
  take_answer();
}

void ExecClient::take_answer() {
  const size_t newline = x_answer.find('\n');
  if (newline == std::string::npos && x_answer.size() < kAnswerBytesMax) return;
  if (newline == std::string::npos || !x_answer.starts_with("OK "))
    return end({How::kNonsense, 0,
                fmt::format("CONNECT is answered by '{}'", printable(x_answer.substr(0, 64)))});
  x_answer_timer->cancel();
  x_state = State::kRunning;
  if (x_timeout.count() > 0) x_timeout_timer->start(x_timeout);
  x_frames.feed(std::string_view(x_answer).substr(newline + 1));
  send(std::move(x_request_line));
  if (x_state == State::kRunning) take_frames();
}

void ExecClient::take_frames() {
  while (x_state == State::kRunning) {
    const auto frame = x_frames.next();
    if (!frame) break;
    take_frame(*frame);
  }
  if (x_frames.broken()) end({How::kNonsense, 0, "a frame of unknown type, or too long"});
}

void ExecClient::take_frame(const exec::FrameReader::Frame& frame) {
  const auto nonsense = [this](const char* what) { end({How::kNonsense, 0, what}); };
  if (frame.type == FrameType::kRefused && !x_started)
    return end({How::kRefused, 0, printable(frame.payload)});
  if (frame.type == FrameType::kStarted) {
    const auto started = exec::fields_of<exec::Started>(frame.payload);
    if (!started || x_started) return nonsense("a wrong Started frame");
    if (started->version != exec::kVersion)
      return end({How::kRefused, 0, fmt::format("it speaks version {}", started->version)});
    x_started = true;
    x_handlers.started();
    if (x_takes_stdin && x_out.empty() && x_state == State::kRunning) x_handlers.wants_input();
    return;
  }
  if (!x_started) return nonsense("a frame before Started");
  if (frame.type == FrameType::kStdout || frame.type == FrameType::kStderr)
    return x_handlers.output(frame.payload, frame.type == FrameType::kStderr);
  const auto exit = exec::fields_of<exec::Exit>(frame.payload);
  if (frame.type != FrameType::kExit || !exit) return nonsense("a frame that no agent sends");
  const auto how = static_cast<exec::ExitHow>(exit->how);
  if (how == exec::ExitHow::kTimedOut) return end({How::kTimedOut, 0, ""});
  if (how == exec::ExitHow::kExited && exit->value <= 255)
    return end({How::kExited, exit->value, ""});
  if (how == exec::ExitHow::kSignalled && exit->value >= 1 && exit->value <= 64)
    return end({How::kSignalled, exit->value, ""});
  nonsense("a wrong Exit frame");
}

void ExecClient::send_input(std::string_view bytes) {
  LETHE_ASSERT(bytes.size() <= exec::kFrameBytesMax);
  if (x_state == State::kRunning) send(exec::frame(FrameType::kStdin, bytes));
}

void ExecClient::send(std::string bytes) {
  x_out += bytes;
  flush();
}

void ExecClient::flush() {
  while (!x_out.empty()) {
    const ssize_t sent = ::send(x_socket.get(), x_out.data(), x_out.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) {
      if (x_write_watch) return;
      auto watched = x_loop.watch_writable(x_socket.get(), [this] { flush(); });
      if (!watched) return end({How::kLost, 0, ""});
      x_write_watch = std::move(*watched);
      return;
    }
    // It has gone; what it said before, such as why, is still to be read.
    if (sent < 0)
      x_out.clear();
    else
      x_out.erase(0, static_cast<size_t>(sent));
  }
  x_write_watch.reset();
  if (!x_started || !x_takes_stdin) return;
  // Posted: send_input() is above us.
  x_loop.post([this, alive = x_alive] {
    if (*alive && x_state == State::kRunning && x_out.empty()) x_handlers.wants_input();
  });
}

}  // namespace lethe
