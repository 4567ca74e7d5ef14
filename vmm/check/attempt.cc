#include "vmm/check/attempt.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "base/file_bytes.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr size_t kReadBytes = 64 << 10;
constexpr int kReadsPerWake = 16;  // then others get their turn

Result<std::pair<UniqueFd, UniqueFd>> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return host_error("pipe: {}", errno_text(errno));
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  if (::fcntl(read_end.get(), F_SETFL, O_NONBLOCK) != 0)
    return host_error("pipe: {}", errno_text(errno));
  return std::pair(std::move(read_end), std::move(write_end));
}

// Runs in the forked child, which is single-threaded: only async-signal-safe calls. `input` etc.
// become descriptors 0 to 2; all others close on exec.
[[noreturn]] void become(char* const* arguments, char* const* environment, int input, int output,
                         int messages, pid_t parent) {
  // A group of its own, so that the terminal's Ctrl-C reaches only us, and that the whole group
  // can be ended. It must not outlive us: PDEATHSIG, and the check that we live still.
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) ::signal(number, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::dup2(input, 0) == 0 && ::dup2(output, 1) == 1 && ::dup2(messages, 2) == 2)
    ::execve(arguments[0], arguments, environment);
  constexpr std::string_view kText = "cannot start the program\n";
  (void)!::write(2, kText.data(), kText.size());
  ::_exit(127);
}

// Ours and `more`; of two values of a name, the one of `more` stands.
std::vector<char*> environment_with(std::vector<std::string>& more) {
  std::vector<char*> all;
  for (std::string& variable : more) all.push_back(variable.data());
  for (char** ours = environ; *ours != nullptr; ++ours) {
    const std::string_view variable = *ours;
    const std::string_view name = variable.substr(0, variable.find('=') + 1);
    if (std::none_of(more.begin(), more.end(), [&](auto& m) { return m.starts_with(name); }))
      all.push_back(*ours);
  }
  all.push_back(nullptr);
  return all;
}

}  // namespace

Attempt::Attempt(EventLoop& loop, AttemptSpec spec, std::function<void(AttemptRecord)> done)
    : x_loop(loop), x_spec(std::move(spec)), x_done(std::move(done)) {
  x_started_at = std::chrono::steady_clock::now();
  x_record.deadline = x_spec.deadline;
  x_deadline_timer = loop.make_timer([this] {
    x_record.timed_out = true;
    stop_child();
  });
  x_kill_timer = loop.make_timer([this] { signal_group(SIGKILL); });
  if (auto started = start(); !started) {
    x_record.start_error = started.error().text;
    finish();
  }
}

Attempt::~Attempt() {
  *x_alive = false;
  if (x_pid < 0) return;
  signal_group(SIGKILL);
  ::waitpid(x_pid, nullptr, 0);
}

Result<> Attempt::start() {
  if (!x_spec.log_file.empty()) {
    x_log =
        UniqueFd(::open(x_spec.log_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!x_log.valid())
      return host_error("'{}': {}", printable(x_spec.log_file), errno_text(errno));
  }
  LETHE_TRY_ASSIGN(auto output, make_pipe());
  LETHE_TRY_ASSIGN(auto messages, make_pipe());
  x_console = {std::move(output.first), nullptr, &x_record.console, kConsoleBytesMax};
  x_messages = {std::move(messages.first), nullptr, &x_record.messages, kMessagesBytesMax};
  LETHE_TRY(spawn(std::move(output.second), std::move(messages.second)));
  // SAFETY: pidfd_open has no wrapper in this glibc; the child is ours and not reaped, so the pid
  // can't have been reused.
  x_pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, x_pid, 0)));
  if (!x_pidfd.valid()) return host_error("pidfd_open: {}", errno_text(errno));
  LETHE_TRY_ASSIGN(x_exit_watch, x_loop.watch_readable(x_pidfd.get(), [this] { child_ended(); }));
  for (Stream* stream : {&x_console, &x_messages}) {
    LETHE_TRY_ASSIGN(stream->watch,
                     x_loop.watch_readable(stream->fd.get(), [this, stream] { drain(*stream); }));
  }
  x_deadline_timer->start(x_spec.deadline);
  return {};
}

Result<> Attempt::spawn(UniqueFd output, UniqueFd messages) {
  const UniqueFd input(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!input.valid()) return host_error("/dev/null: {}", errno_text(errno));
  std::vector<char*> arguments;
  for (std::string& word : x_spec.command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const std::vector<char*> environment = environment_with(x_spec.environment);
  // No signal may run our handlers in the child.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, &before);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0)
    become(arguments.data(), environment.data(), input.get(), output.get(), messages.get(), parent);
  const int fork_error = errno;
  ::sigprocmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return host_error("cannot start a process: {}", errno_text(fork_error));
  // Here too: who of the two comes first is open, and signal_group() needs the group.
  ::setpgid(pid, pid);
  x_pid = pid;
  return {};
}

void Attempt::keep(Stream& stream, std::string_view chunk) {
  if (&stream == &x_messages && x_spec.on_messages) x_spec.on_messages(chunk);
  const std::string_view kept = chunk.substr(0, stream.bytes_max - stream.text->size());
  stream.text->append(kept);
  // A full disk loses the log, not the verdict.
  if (x_log.valid()) (void)write_all(x_log.get(), kept);
  if (kept.size() == chunk.size() || &stream != &x_console || x_record.flooded) return;
  x_record.flooded = true;
  stop_child();
}

void Attempt::drain(Stream& stream) {
  std::array<char, kReadBytes> chunk;
  for (int i = 0; i < kReadsPerWake; ++i) {
    const ssize_t got = ::read(stream.fd.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      stream.watch.reset();  // its end: all writers are gone
      return;
    }
    keep(stream, {chunk.data(), static_cast<size_t>(got)});
  }
}

void Attempt::signal_group(int signal) const {
  if (x_pid > 0) ::kill(-x_pid, signal);
}

void Attempt::stop_child() {
  if (x_stopping) return;
  x_stopping = true;
  signal_group(SIGTERM);
  x_kill_timer->start(x_spec.grace);
}

void Attempt::interrupt() {
  if (x_record.interrupted) return signal_group(SIGKILL);
  x_record.interrupted = true;
  stop_child();
}

void Attempt::child_ended() {
  // What it left running must not hold our pipes or the machine. The pid is not reaped yet, so the
  // group's number is still its own.
  signal_group(SIGKILL);
  // All it wrote is in the pipes; at most their size, so a few reads empty them.
  drain(x_console);
  drain(x_messages);
  if (::waitpid(x_pid, &x_record.wait_status, 0) < 0) x_record.start_error = "the process is lost";
  x_pid = -1;
  finish();
}

void Attempt::finish() {
  x_exit_watch.reset();
  x_console.watch.reset();
  x_messages.watch.reset();
  x_deadline_timer->cancel();
  x_kill_timer->cancel();
  x_record.duration = std::chrono::steady_clock::now() - x_started_at;
  // Posted: `done` may destroy this object, which callbacks above us still use.
  x_loop.post([this, alive = x_alive] {
    if (!*alive) return;
    const auto done = std::move(x_done);
    done(std::move(x_record));
  });
}

}  // namespace lethe
