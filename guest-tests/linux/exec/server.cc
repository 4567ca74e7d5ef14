#include "guest-tests/linux/exec/server.h"

#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "guest-tests/linux/exec/serve.h"

namespace lethe::exec {
namespace {

using Failed = tl::unexpected<std::string>;

constexpr int kBacklog = 64;
constexpr int kAcceptPauseMs = 100;

Failed failed(const std::string& what) { return Failed(what + ": " + ::strerrordesc_np(errno)); }

template <typename Address>
tl::expected<UniqueFd, std::string> listen_at(const Address& address, const std::string& what) {
  // SAFETY: each socket family's address starts as a sockaddr does, and its size is told.
  const auto* plain = reinterpret_cast<const sockaddr*>(&address);
  UniqueFd listener(::socket(plain->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener.valid()) return failed(what);
  if (::bind(listener.get(), plain, sizeof address) != 0 || ::listen(listener.get(), kBacklog) != 0)
    return failed(what);
  return listener;
}

// Whether no later accept() can go well: the listener is not one. All else is the client's, the
// network's or the moment's.
bool ends_listening(int error) {
  return error == EBADF || error == EINVAL || error == ENOTSOCK || error == EFAULT;
}

// Whether the peer is the host; a Unix socket's is.
bool from_host(const sockaddr_storage& peer) {
  if (peer.ss_family != AF_VSOCK) return true;
  sockaddr_vm address;
  std::memcpy(&address, &peer, sizeof address);
  return address.svm_cid == VMADDR_CID_HOST;
}

}  // namespace

tl::expected<UniqueFd, std::string> listen_vsock(uint32_t port) {
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port;
  return listen_at(address, "vsock port " + std::to_string(port));
}

tl::expected<UniqueFd, std::string> listen_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return Failed(path + ": too long for a socket");
  path.copy(address.sun_path, path.size());
  (void)::unlink(path.c_str());
  return listen_at(address, path);
}

std::string serve_all(UniqueFd listener) {
  int children = 0;
  for (;;) {
    while (children > 0 && ::waitpid(-1, nullptr, WNOHANG) > 0) --children;
    sockaddr_storage peer{};
    socklen_t size = sizeof peer;
    // SAFETY: a sockaddr_storage holds any family's address.
    UniqueFd client(
        ::accept4(listener.get(), reinterpret_cast<sockaddr*>(&peer), &size, SOCK_CLOEXEC));
    if (!client.valid()) {
      if (errno == EINTR || errno == ECONNABORTED || errno == EAGAIN) continue;
      if (ends_listening(errno)) return std::string("accept: ") + ::strerrordesc_np(errno);
      (void)::poll(nullptr, 0, kAcceptPauseMs);
      continue;
    }
    if (!from_host(peer)) continue;
    while (children > 0 && ::waitpid(-1, nullptr, WNOHANG) > 0) --children;
    if (children >= kConnectionsMax) {
      refuse(client, "the agent serves its most clients already");
      continue;
    }
    const pid_t child = ::fork();
    if (child == 0) {
      listener.reset();  // or the address stays taken, and unserved, after the agent's end
      serve(std::move(client));
      ::_exit(0);
    }
    if (child > 0) ++children;
    if (child < 0) refuse(client, "the guest can start no process");
  }
}

}  // namespace lethe::exec
