#include "base/unix_socket.h"

#include <sys/stat.h>

#include <cerrno>

namespace lethe {
namespace {

constexpr int kBacklog = 128;

// False: the path does not fit.
bool fill(sockaddr_un& address, std::string_view path) {
  address.sun_family = AF_UNIX;
  if (path.size() > kUnixPathMax) return false;
  path.copy(address.sun_path, path.size());
  return true;
}

}  // namespace

int connect_unix(int fd, std::string_view path) {
  sockaddr_un address{};
  if (!fill(address, path)) {
    errno = ENAMETOOLONG;
    return -1;
  }
  // SAFETY: a sockaddr_un is given as the sockaddr that connect() wants, with its size.
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
}

Result<UniqueFd> listen_unix(const std::string& path, int type) {
  sockaddr_un address{};
  if (!fill(address, path)) return host_error("'{}' is too long for a socket's path", path);
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return host_error("cannot make a socket: {}", errno_text(errno));
  // The file gets the socket's own mode (unix(7) says: the umask's; Linux takes both).
  // SAFETY: a sockaddr_un is given as the sockaddr that bind() wants, with its size.
  if (::fchmod(fd.get(), 0600) != 0 ||
      ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), kBacklog) != 0)
    return host_error("cannot listen on '{}': {}", path, errno_text(errno));
  return fd;
}

}  // namespace lethe
