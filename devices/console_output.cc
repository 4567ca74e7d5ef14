#include "devices/console_output.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/file_bytes.h"
#include "base/log.h"

namespace lethe {
namespace {

// What a blocking descriptor is given at a time once it polls writable: a pipe then has a page
// free, and a terminal at least this much.
constexpr size_t kBlockingChunk = 256;
constexpr size_t kFlushBudget = ConsoleOutput::kBufferMax;  // bytes before the loop gets its turn

bool is_pty_master(int fd) {
  int number = 0;
  return ::ioctl(fd, TIOCGPTN, &number) == 0;
}

bool polls_writable(int fd, int timeout_ms) {
  pollfd poll_fd{.fd = fd, .events = POLLOUT, .revents = 0};
  return ::poll(&poll_fd, 1, timeout_ms) > 0;
}

}  // namespace

Result<std::unique_ptr<ConsoleOutput>> ConsoleOutput::create(EventLoop& loop, int fd,
                                                             const std::string& log_path,
                                                             ConsoleLog mode,
                                                             size_t log_bytes_max) {
  UniqueFd log;
  if (!log_path.empty()) {
    const int how = mode == ConsoleLog::kTruncate ? O_TRUNC : 0;
    log.reset(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | how | O_CLOEXEC, 0600));
    if (!log.valid())
      return host_error("cannot open the console log '{}': {}", log_path, errno_text(errno));
  }
  UniqueFd own;
  Kind kind = Kind::kNone;
  struct stat status{};
  if (fd >= 0) {
    if (::fstat(fd, &status) != 0)
      return host_error("cannot use descriptor {} for the console: {}", fd, errno_text(errno));
    // A pseudo-terminal's master, opened anew, would be another terminal.
    if (S_ISFIFO(status.st_mode) || (S_ISCHR(status.st_mode) && !is_pty_master(fd))) {
      own.reset(::open(fmt::format("/proc/self/fd/{}", fd).c_str(),
                       O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    }
    kind = own.valid()                ? Kind::kNonBlocking
           : S_ISSOCK(status.st_mode) ? Kind::kSocket
                                      : Kind::kBlocking;
    if (!own.valid()) own.reset(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!own.valid())
      return host_error("cannot duplicate descriptor {}: {}", fd, errno_text(errno));
  }
  return std::unique_ptr<ConsoleOutput>(
      new ConsoleOutput(loop, std::move(own), kind, std::move(log), log_path, log_bytes_max));
}

ConsoleOutput::ConsoleOutput(EventLoop& loop, UniqueFd fd, Kind kind, UniqueFd log,
                             std::string log_path, size_t log_bytes_max)
    : x_loop(loop),
      x_fd(std::move(fd)),
      x_kind(kind),
      x_log(std::move(log)),
      x_log_path(std::move(log_path)),
      x_log_bytes_max(log_bytes_max),
      x_log_bytes(log_bytes_max),
      x_period(loop.make_timer([this] { flush_again(); })) {}

void ConsoleOutput::add_room_listener(std::function<void()> listener) {
  x_listeners.push_back(std::move(listener));
}

size_t ConsoleOutput::write(std::span<const uint8_t> bytes) {
  bool start = false;
  size_t taken = 0;
  {
    MutexLock lock(x_mutex);
    taken = x_buffer.push(bytes);
    if (taken < bytes.size()) x_refused = true;
    start = !x_flushing && !x_buffer.empty();
    if (start) x_flushing = true;
  }
  if (start) x_loop.post([this] { flush(); });
  return taken;
}

void ConsoleOutput::flush() {
  size_t budget = kFlushBudget;
  while (budget > 0) {
    if (!flush_once(budget)) return;
  }
  x_loop.post([this] { flush(); });
}

// A period after the buffer was found empty.
void ConsoleOutput::flush_again() {
  {
    MutexLock lock(x_mutex);
    x_flushing = !x_buffer.empty();
    if (!x_flushing) return;
  }
  flush();
}

// Writes one piece. False: the buffer is empty, or the descriptor takes nothing now.
bool ConsoleOutput::flush_once(size_t& budget) {
  std::span<const uint8_t> piece;
  {
    MutexLock lock(x_mutex);
    piece = x_buffer.front();
  }
  if (piece.empty()) {
    x_writable.reset();
    x_period->start(kFlushPeriod);
    return false;
  }
  if (x_logged < piece.size()) {
    log(piece.subspan(x_logged));
    x_logged = piece.size();
  }
  const size_t count = write_some(piece);
  if (count == 0) {
    wait_until_writable();
    return false;
  }
  budget -= std::min(budget, count);
  consumed(count);
  return true;
}

void ConsoleOutput::consumed(size_t count) {
  x_logged -= count;
  bool room = false;
  {
    MutexLock lock(x_mutex);
    x_buffer.pop(count);
    if (x_refused && x_buffer.room() >= kBufferMax / 2) {
      x_refused = false;
      room = true;
    }
  }
  if (!room) return;
  for (const auto& listener : x_listeners) listener();
}

void ConsoleOutput::log(std::span<const uint8_t> bytes) {
  if (x_tap) x_tap(bytes);
  if (!x_log.valid()) return;
  Result<> wrote = write_all(x_log.get(), bytes);
  x_log_bytes += bytes.size();
  if (wrote && x_log_bytes > x_log_bytes_max) {
    if (const auto left = cut_file(x_log.get(), x_log_bytes_max); left)
      x_log_bytes = *left;
    else
      wrote = Unexpected(left.error());
  }
  if (wrote) {
    x_counters.logged += bytes.size();
    return;
  }
  log_warn(LogModule::kConsole, "console log '{}' ends here: {}", x_log_path, wrote.error().text);
  x_counters.log_dropped += bytes.size();
  x_log.reset();
}

// Returns how many bytes the descriptor took, 0 if it would block. A descriptor that fails takes
// everything from then on.
size_t ConsoleOutput::write_some(std::span<const uint8_t> bytes) {
  for (;;) {
    ssize_t count = -1;
    switch (x_kind) {
      case Kind::kNone:
        x_counters.dropped += x_fd.valid() ? bytes.size() : 0;
        return bytes.size();
      case Kind::kNonBlocking:
        count = ::write(x_fd.get(), bytes.data(), bytes.size());
        break;
      case Kind::kSocket:
        count = ::send(x_fd.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        break;
      case Kind::kBlocking:
        if (!polls_writable(x_fd.get(), 0)) return 0;
        count = ::write(x_fd.get(), bytes.data(), std::min(bytes.size(), kBlockingChunk));
        break;
    }
    if (count > 0) {
      x_counters.written += static_cast<uint64_t>(count);
      return static_cast<size_t>(count);
    }
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
    log_warn(LogModule::kConsole, "console output is lost from here on: {}", errno_text(errno));
    x_kind = Kind::kNone;
  }
}

void ConsoleOutput::wait_until_writable() {
  if (x_writable) return;
  auto watch = x_loop.watch_writable(x_fd.get(), [this] { flush(); });
  if (watch) {
    x_writable = std::move(*watch);
    return;
  }
  log_warn(LogModule::kConsole, "console output is lost from here on: {}", watch.error().text);
  x_kind = Kind::kNone;
  x_loop.post([this] { flush(); });
}

void ConsoleOutput::finish(std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  x_writable.reset();
  x_period->cancel();
  for (;;) {
    std::span<const uint8_t> piece;
    {
      MutexLock lock(x_mutex);
      piece = x_buffer.front();
    }
    if (piece.empty()) return;
    if (x_logged < piece.size()) log(piece.subspan(x_logged));
    x_logged = std::max(x_logged, piece.size());
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    size_t count = write_some(piece);
    if (count == 0 && left.count() <= 0) {
      x_counters.dropped += piece.size();
      count = piece.size();
    }
    if (count > 0) {
      consumed(count);
    } else {
      polls_writable(x_fd.get(), static_cast<int>(left.count()));
    }
  }
}

}  // namespace lethe
