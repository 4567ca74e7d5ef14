// Drives the guest of the lab's vsock test from the host: vsock_host SOCKET STREAMS BYTES, where
// SOCKET is the VM's vsock.sock. See guest-tests/linux/vsock_peer.h.
#include <sys/un.h>

#include "guest-tests/linux/vsock_peer.h"

namespace {

sockaddr_un address(const std::string& path) {
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  path.copy(to.sun_path, sizeof to.sun_path - 1);
  return to;
}

// CONNECT, and OK.
int connect_to_guest(const std::string& path) {
  using namespace lethe::vsock_peer;
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  const sockaddr_un to = address(path);
  const std::string line = "CONNECT " + std::to_string(kGuestPort) + "\n";
  // SAFETY: a sockaddr_un is given as the sockaddr that connect() wants, with its size.
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0 ||
      ::write(fd, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    return -1;
  std::string answer;
  char byte = 0;
  while (byte != '\n') {
    if (!wait_for(fd, POLLIN) || ::read(fd, &byte, 1) != 1) return -1;
    answer += byte;
  }
  return answer.starts_with("OK ") ? fd : -1;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace lethe::vsock_peer;
  if (argc != 4) return 2;
  const std::string path = argv[1];
  const auto streams = static_cast<unsigned>(std::atoi(argv[2]));
  const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
  const sockaddr_un at = address(path + "_" + std::to_string(kHostPort));
  // SAFETY: as above.
  if (::bind(listener, reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0 ||
      ::listen(listener, static_cast<int>(streams)) != 0) {
    failed("listen", 0);
    return 1;
  }
  return run(listener, streams, static_cast<size_t>(std::atol(argv[3])), false,
             [&](unsigned) { return connect_to_guest(path); });
}
