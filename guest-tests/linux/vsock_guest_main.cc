// Runs in a Linux guest: vsock_guest STREAMS BYTES. See vsock_peer.h; guest-tests/lab/vsock_host is
// the other side.
#include <linux/vm_sockets.h>

#include "guest-tests/linux/vsock_peer.h"

namespace {

sockaddr_vm address(unsigned cid, unsigned port) {
  sockaddr_vm to{};
  to.svm_family = AF_VSOCK;
  to.svm_cid = cid;
  to.svm_port = port;
  return to;
}

int connect_to_host(unsigned) {
  const int fd = ::socket(AF_VSOCK, SOCK_STREAM, 0);
  const sockaddr_vm to = address(VMADDR_CID_HOST, lethe::vsock_peer::kHostPort);
  // SAFETY: a sockaddr_vm is given as the sockaddr that connect() wants, with its size.
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0 ? fd : -1;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace lethe::vsock_peer;
  if (argc != 3) return 2;
  (void)std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const auto streams = static_cast<unsigned>(std::atoi(argv[1]));
  const int listener = ::socket(AF_VSOCK, SOCK_STREAM, 0);
  const sockaddr_vm at = address(VMADDR_CID_ANY, kGuestPort);
  // SAFETY: as above.
  if (::bind(listener, reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0 ||
      ::listen(listener, static_cast<int>(streams)) != 0) {
    failed("listen", 0);
    return 1;
  }
  std::printf("vsock_peer: ready\n");
  return run(listener, streams, static_cast<size_t>(std::atol(argv[2])), true, connect_to_host);
}
