#include "vmm/detach.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/log.h"
#include "vmm/run.h"

namespace lethe {
namespace {

constexpr char kStarted = 'R';

Result<> use_null(int fd, int flags) {
  const UniqueFd null(::open("/dev/null", flags | O_CLOEXEC));
  if (!null.valid() || ::dup2(null.get(), fd) < 0)
    return host_error("cannot open /dev/null: {}", errno_text(errno));
  return {};
}

// The descriptors above 2 that who started us has left open for us. Our own are close-on-exec, and
// so are these from here on: no program that we start needs one.
std::vector<int> take_inherited() {
  std::vector<int> inherited;
  DIR* const list = ::opendir("/proc/self/fd");
  if (list == nullptr) return inherited;
  while (const dirent* const entry = ::readdir(list)) {
    const std::string_view name(entry->d_name);
    int fd = -1;
    (void)std::from_chars(name.data(), name.data() + name.size(), fd);  // not "." and ".."
    const int flags = fd > STDERR_FILENO ? ::fcntl(fd, F_GETFD) : -1;
    if (flags < 0 || (flags & FD_CLOEXEC) != 0) continue;
    (void)::fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
    inherited.push_back(fd);
  }
  (void)::closedir(list);
  return inherited;
}

// The exit code of a child that ended before it ran, or was killed.
int code_of(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return kExitHostError;
  if (WIFEXITED(status)) return WEXITSTATUS(status) == 0 ? kExitHostError : WEXITSTATUS(status);
  std::fprintf(stderr, "lethe: the VM's process was ended by signal %d\n", WTERMSIG(status));
  return kExitHostError;
}

int wait_for_start(int line, pid_t child) {
  char byte = 0;
  for (;;) {
    const ssize_t got = ::read(line, &byte, 1);
    if (got < 0 && errno == EINTR) continue;
    return got == 1 && byte == kStarted ? 0 : code_of(child);
  }
}

// sd_notify(3): where a service manager waits (Type=notify), the VM runs from here on.
void tell_systemd() {
  const char* const path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  const size_t size = path == nullptr ? 0 : std::strlen(path);
  if (size < 2 || size >= sizeof address.sun_path) return;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path, size);
  if (path[0] == '@') address.sun_path[0] = '\0';  // an abstract name
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  constexpr std::string_view kReady = "READY=1\n";
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + size);
  // SAFETY: a sockaddr_un is given as the sockaddr that sendto() wants, with the size of its name.
  if (::sendto(fd.get(), kReady.data(), kReady.size(), MSG_NOSIGNAL,
               reinterpret_cast<const sockaddr*>(&address), length) < 0)
    log_warn(LogModule::kVmm, "NOTIFY_SOCKET '{}' takes no notice: {}", path, errno_text(errno));
}

}  // namespace

Result<> StartSignal::send(const std::string& messages, std::span<const int> keep) {
  if (!std::exchange(x_told_systemd, true)) tell_systemd();
  if (!x_line.valid()) return {};
  const UniqueFd log(
      ::open(messages.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600));
  if (!log.valid()) return host_error("cannot open '{}': {}", messages, errno_text(errno));
  if (::dup2(log.get(), STDERR_FILENO) < 0)
    return host_error("cannot redirect standard error: {}", errno_text(errno));
  set_log_bytes_max(kDetachedMessagesBytesMax);
  for (const int fd : std::exchange(x_inherited, {}))
    if (std::ranges::find(keep, fd) == keep.end()) (void)::close(fd);
  // Who waited may be gone (EPIPE): the VM runs on.
  [[maybe_unused]] const ssize_t sent = ::write(x_line.get(), &kStarted, 1);
  x_line.reset();
  x_sent = true;
  return {};
}

Result<DetachedSide> detach() {
  int line[2];
  if (::pipe2(line, O_CLOEXEC) != 0) return host_error("cannot make a pipe: {}", errno_text(errno));
  UniqueFd ours(line[0]);
  UniqueFd theirs(line[1]);
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child < 0) return host_error("cannot make a process: {}", errno_text(errno));
  DetachedSide side;
  if (child > 0) {
    theirs.reset();
    side.parent_code = wait_for_start(ours.get(), child);
    return side;
  }
  ours.reset();
  (void)::setsid();
  LETHE_TRY(use_null(STDIN_FILENO, O_RDONLY));
  LETHE_TRY(use_null(STDOUT_FILENO, O_WRONLY));
  side.signal = StartSignal(std::move(theirs), take_inherited());
  return side;
}

}  // namespace lethe
