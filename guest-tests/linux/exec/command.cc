#include "guest-tests/linux/exec/command.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace lethe::exec {
namespace {

using Failed = tl::unexpected<std::string>;

Failed failed(const char* what) {
  return Failed(std::string(what) + ": " + ::strerrordesc_np(errno));
}

struct Pipe {
  UniqueFd read_end;
  UniqueFd write_end;
};

bool make_pipe(Pipe& pipe) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return false;
  pipe.read_end.reset(ends[0]);
  pipe.write_end.reset(ends[1]);
  return true;
}

bool unblock(const UniqueFd& fd) { return ::fcntl(fd.get(), F_SETFL, O_NONBLOCK) == 0; }

// All that the child needs, made before the fork.
struct Prepared {
  std::vector<char*> arguments;
  std::vector<std::string> words;  // of the environment
  std::vector<char*> environment;
  const char* cwd = nullptr;
};

// What went wrong in the child, as it tells us.
struct ChildError {
  int error;
  bool in_chdir;
};

void prepare(const Request& request, Prepared& prepared) {
  // SAFETY: execvpe() takes char* for history's sake and changes nothing.
  for (const std::string& word : request.run)
    prepared.arguments.push_back(const_cast<char*>(word.c_str()));
  prepared.arguments.push_back(nullptr);
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view word = *entry;
    const std::string_view name = word.substr(0, word.find('='));
    bool replaced = false;
    for (const auto& [key, value] : request.env) replaced |= key == name;
    if (!replaced) prepared.words.emplace_back(word);
  }
  for (const auto& [key, value] : request.env) prepared.words.push_back(key + "=" + value);
  for (std::string& word : prepared.words) prepared.environment.push_back(word.data());
  prepared.environment.push_back(nullptr);
  if (!request.cwd.empty()) prepared.cwd = request.cwd.c_str();
}

// Runs in the child: async-signal-safe calls only (glibc's execvpe allocates on the stack).
[[noreturn]] void become(const Prepared& prepared, int input, int output, int errors, int tell) {
  ::setsid();
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ChildError failure{0, false};
  if (::dup2(input, 0) < 0 || ::dup2(output, 1) < 0 || ::dup2(errors, 2) < 0) {
    failure.error = errno;
  } else if (prepared.cwd != nullptr && ::chdir(prepared.cwd) != 0) {
    failure = {errno, true};
  } else {
    ::execvpe(prepared.arguments[0], prepared.arguments.data(), prepared.environment.data());
    failure.error = errno;
  }
  (void)!::write(tell, &failure, sizeof failure);
  ::_exit(127);
}

}  // namespace

tl::expected<Command, std::string> Command::start(const Request& request) {
  Command command;
  Pipe input, output, errors, told;
  if (request.takes_stdin ? !make_pipe(input) : false) return failed("pipe");
  if (!request.takes_stdin) input.read_end.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!input.read_end.valid()) return failed("/dev/null");
  if (!make_pipe(output) || !make_pipe(errors) || !make_pipe(told)) return failed("pipe");
  Prepared prepared;
  prepare(request, prepared);
  const pid_t pid = ::fork();
  if (pid < 0) return failed("cannot start a process");
  if (pid == 0)
    become(prepared, input.read_end.get(), output.write_end.get(), errors.write_end.get(),
           told.write_end.get());
  command.x_pid.number = pid;
  told.write_end.reset();
  // Its end: the program runs, and its process group is its own.
  ChildError failure{};
  ssize_t got;
  while ((got = ::read(told.read_end.get(), &failure, sizeof failure)) < 0 && errno == EINTR) {
  }
  if (got != 0) {
    (void)command.reap();
    const std::string what = failure.in_chdir ? "cannot change to '" + request.cwd + "': "
                                              : "cannot run '" + request.run[0] + "': ";
    return Failed(what + ::strerrordesc_np(failure.error));
  }
  // SAFETY: pidfd_open has no wrapper in this glibc; the child is ours and not reaped.
  command.pidfd.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!command.pidfd.valid()) return failed("pidfd_open");
  command.input = std::move(input.write_end);
  command.output = std::move(output.read_end);
  command.errors = std::move(errors.read_end);
  if ((command.input.valid() && !unblock(command.input)) || !unblock(command.output) ||
      !unblock(command.errors))
    return failed("fcntl");
  return command;
}

Command::~Command() {
  if (x_pid.number < 0) return;
  kill_group();
  (void)reap();
}

void Command::kill_group() const {
  if (x_pid.number > 0) ::kill(-x_pid.number, SIGKILL);
}

int Command::reap() {
  int status = 0;
  while (::waitpid(x_pid.number, &status, 0) < 0 && errno == EINTR) {
  }
  x_pid.number = -1;
  return status;
}

}  // namespace lethe::exec
