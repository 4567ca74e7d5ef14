#include "vmm/passt.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include "base/log.h"
#include "vmm/config_schema.h"
#include "vmm/find_program.h"
#include "vmm/net_config.h"

namespace lethe {
namespace {

constexpr int kPasstSocket = 3;  // in the process
constexpr size_t kLineMax = 512;
constexpr int kEndPatienceMs = 200;

Result<std::string> find_passt() {
  std::string found = find_program("passt");
  if (!found.empty()) return found;
  return host_error(
      "net: user = true needs passt, which is not in PATH: install the package 'passt' "
      "(apt-get install passt)");
}

// What spawns a child with these descriptors and no signal blocked, ignored or handled.
class SpawnSettings {
 public:
  SpawnSettings() {
    ::posix_spawn_file_actions_init(&x_actions);
    ::posix_spawnattr_init(&x_attributes);
    sigset_t none;
    ::sigemptyset(&none);
    ::posix_spawnattr_setsigmask(&x_attributes, &none);
    sigset_t defaults;
    ::sigemptyset(&defaults);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) ::sigaddset(&defaults, number);
    ::posix_spawnattr_setsigdefault(&x_attributes, &defaults);
    // A group of its own: the terminal's Ctrl-C is for us, and the guest keeps its network while it
    // shuts down.
    ::posix_spawnattr_setpgroup(&x_attributes, 0);
    ::posix_spawnattr_setflags(
        &x_attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  }
  ~SpawnSettings() {
    ::posix_spawn_file_actions_destroy(&x_actions);
    ::posix_spawnattr_destroy(&x_attributes);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;
  // `from` is above all `to`, so that none is closed before its turn.
  void give(int from, int to) { ::posix_spawn_file_actions_adddup2(&x_actions, from, to); }
  void open_null(int as) {
    ::posix_spawn_file_actions_addopen(&x_actions, as, "/dev/null", O_RDWR, 0);
  }
  int spawn(pid_t& pid, const std::string& program, std::vector<std::string>& arguments) {
    std::vector<char*> words;
    for (std::string& word : arguments) words.push_back(word.data());
    words.push_back(nullptr);
    return ::posix_spawn(&pid, program.c_str(), &x_actions, &x_attributes, words.data(), environ);
  }

 private:
  posix_spawn_file_actions_t x_actions{};
  posix_spawnattr_t x_attributes{};
};

// A duplicate above the descriptors that the child gets.
Result<UniqueFd> high_duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, kPasstSocket + 1));
  if (!copy.valid()) return host_error("passt: {}", errno_text(errno));
  return Result<UniqueFd>(std::move(copy));
}

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return fmt::format("killed by signal {}", WTERMSIG(status));
  return fmt::format("exit code {}", WEXITSTATUS(status));
}

}  // namespace

std::vector<std::string> passt_arguments(const NetConfig& net) {
  std::vector<std::string> words = {"passt", "--foreground", "--quiet", "--mtu",
                                    std::to_string(mtu_of(net))};
  bool udp = false;
  for (const std::string& text : net.forwards) {
    const auto forward = parse_forward(text);
    if (!forward) continue;  // the config was checked
    udp |= forward->udp;
    words.push_back(forward->udp ? "--udp-ports" : "--tcp-ports");
    words.push_back(forward->passt_spec());
  }
  // Otherwise it forwards the TCP ports' numbers for UDP too.
  if (!udp) words.insert(words.end(), {"--udp-ports", "none"});
  if (!net.host_loopback) words.push_back("--no-map-gw");
  words.insert(words.end(), net.passt_options.begin(), net.passt_options.end());
  return words;
}

Result<std::unique_ptr<Passt>> Passt::start(EventLoop& loop, const NetConfig& net) {
  LETHE_TRY_ASSIGN(const std::string program, find_passt());
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return host_error("passt: socketpair: {}", errno_text(errno));
  std::unique_ptr<Passt> passt(new Passt(UniqueFd(ends[0])));
  const UniqueFd theirs(ends[1]);
  LETHE_TRY(passt->spawn(program, net, theirs.get()));
  LETHE_TRY_ASSIGN(passt->x_watch,
                   loop.watch_readable(passt->x_messages.get(),
                                       [self = passt.get()] { self->read_messages(); }));
  return Result<std::unique_ptr<Passt>>(std::move(passt));
}

Result<> Passt::spawn(const std::string& program, const NetConfig& net, int socket) {
  std::array<int, 2> pipe{};
  if (::pipe2(pipe.data(), O_CLOEXEC) != 0) return host_error("passt: pipe: {}", errno_text(errno));
  x_messages.reset(pipe[0]);
  const UniqueFd write_end(pipe[1]);
  (void)::fcntl(x_messages.get(), F_SETFL, O_NONBLOCK);
  LETHE_TRY_ASSIGN(const UniqueFd its_messages, high_duplicate(write_end.get()));
  LETHE_TRY_ASSIGN(const UniqueFd its_socket, high_duplicate(socket));
  std::vector<std::string> arguments = passt_arguments(net);
  arguments.insert(arguments.end(), {"--fd", std::to_string(kPasstSocket)});
  SpawnSettings settings;
  settings.open_null(STDIN_FILENO);
  settings.give(its_messages.get(), STDOUT_FILENO);
  settings.give(its_messages.get(), STDERR_FILENO);
  settings.give(its_socket.get(), kPasstSocket);
  if (const int error = settings.spawn(x_pid, program, arguments); error != 0)
    return host_error("cannot start '{}': {}", program, errno_text(error));
  return {};
}

Passt::~Passt() { (void)end(false); }

void Passt::read_messages() {
  std::array<char, 4096> chunk;
  for (;;) {
    const ssize_t got = ::read(x_messages.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) x_watch.reset();  // it has ended
    if (got <= 0) return;
    for (const char c : std::string_view(chunk.data(), static_cast<size_t>(got))) {
      if (c != '\n') {
        if (x_line.size() < kLineMax) x_line += c;
        continue;
      }
      // Where there is no system log, it says so at each line.
      if (!x_line.empty() && !x_line.starts_with("Failed to send ")) {
        x_last_words = printable(x_line);
        log_info(LogModule::kNet, "passt: {}", x_last_words);
      }
      x_line.clear();
    }
  }
}

std::string Passt::end(bool patient) {
  if (x_pid < 0) return {};
  int status = 0;
  // Its socket closes a moment before it has ended.
  // SAFETY: pidfd_open has no wrapper in this glibc; the child is ours and not reaped, so the pid
  // can't have been reused.
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, x_pid, 0)));
  pollfd ended{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  if (patient) (void)::poll(&ended, 1, kEndPatienceMs);
  const bool had_ended = ::waitpid(x_pid, &status, WNOHANG) == x_pid;
  if (!had_ended) {
    // Not reaped, so the pid is its own still.
    ::kill(x_pid, SIGKILL);
    while (::waitpid(x_pid, &status, 0) < 0 && errno == EINTR) {
    }
  }
  x_pid = -1;
  if (x_watch) read_messages();
  x_watch.reset();
  std::string why = had_ended ? how_it_ended(status) : "it closed its socket";
  if (!x_last_words.empty()) why += ": " + x_last_words;
  return why;
}

}  // namespace lethe
