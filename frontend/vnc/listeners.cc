#include "frontend/vnc/listeners.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>

namespace lethe::gui {
namespace {

constexpr int kBacklog = 16;
constexpr size_t kPasswordMax = 8;

}  // namespace

Result<UniqueFd> listen_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return config_error("'{}' can't be a socket's path: {} bytes at most", path,
                        sizeof address.sun_path - 1);
  path.copy(address.sun_path, path.size());
  // SAFETY: each socket address is given as the sockaddr its calls want, with its own size.
  const auto* plain = reinterpret_cast<const sockaddr*>(&address);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return host_error("cannot make a socket: {}", errno_text(errno));
  struct stat status{};
  if (::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode)) {
    const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (::connect(probe.get(), plain, sizeof address) == 0 || errno == EAGAIN)
      return host_error("another server serves '{}' already", path);
    ::unlink(path.c_str());
  }
  // Nobody else may connect, not even for a moment.
  const mode_t before = ::umask(0177);
  const int bound = ::bind(socket.get(), plain, sizeof address);
  const int error = errno;
  ::umask(before);
  if (bound != 0) return host_error("cannot listen at '{}': {}", path, errno_text(error));
  if (::listen(socket.get(), kBacklog) != 0)
    return host_error("cannot listen at '{}': {}", path, errno_text(errno));
  return socket;
}

Result<UniqueFd> listen_loopback(uint16_t port) {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return host_error("cannot make a socket: {}", errno_text(errno));
  const int on = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  // SAFETY: as above.
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(socket.get(), kBacklog) != 0)
    return host_error("cannot listen at 127.0.0.1:{}: {}", port, errno_text(errno));
  return socket;
}

uint16_t port_of(int listener) {
  sockaddr_in address{};
  socklen_t size = sizeof address;
  // SAFETY: as above; the kernel writes `size` bytes at most.
  if (::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  return ntohs(address.sin_port);
}

UniqueFd accept_from(int listener) {
  UniqueFd socket(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  const int on = 1;
  if (socket.valid()) ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return socket;
}

Result<std::string> read_password(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status{};
  if (!file.valid() || ::fstat(file.get(), &status) != 0)
    return config_error("cannot read the password file '{}': {}", path, errno_text(errno));
  if ((status.st_mode & 077) != 0)
    return config_error("others may read the password file '{}': chmod 600 it", path);
  char text[64] = {};
  const ssize_t got = ::read(file.get(), text, sizeof text);
  if (got < 0) return config_error("cannot read '{}': {}", path, errno_text(errno));
  std::string password(text, static_cast<size_t>(got));
  if (const size_t end = password.find_first_of("\r\n"); end != std::string::npos)
    password.resize(end);
  if (password.empty() || password.size() > kPasswordMax)
    return config_error("'{}': a password for VNC has 1 to {} characters", path, kPasswordMax);
  return password;
}

}  // namespace lethe::gui
