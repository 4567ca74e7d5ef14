// lethe-exec: runs commands in a guest for its host. docs/ci.md, "The agent".
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "guest-tests/linux/exec/server.h"
#include "vmm/exec/protocol.h"

namespace {

constexpr const char* kUsage = R"(usage: lethe-exec [--port N] [--daemon]
       lethe-exec --unix PATH [--daemon]

Runs commands in this guest for its host: `lethe exec NAME -- COMMAND`, and `lethe check`.
They run as the user that lethe-exec runs as. Only the host can connect.

  --port N      the vsock port; 1024 by default
  --unix PATH   listen at a Unix socket instead, for tests: who may open it may run commands
  --daemon      go on in the background once it listens: for init scripts

The VM needs a `[vsock]` table, the guest the module vmw_vsock_virtio_transport.
Exit codes: 0 it listens (--daemon), 1 it can't, 2 usage.
)";

struct Options {
  uint32_t port = lethe::exec::kAgentPort;
  std::string unix_path;
  bool daemon = false;
};

bool parse_port(std::string_view text, uint32_t& port) {
  if (text.empty() || text.size() > 9) return false;
  port = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    port = port * 10 + static_cast<uint32_t>(c - '0');
  }
  return port > 0;
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--daemon") {
      options.daemon = true;
    } else if (word == "--unix" && i + 1 < argc) {
      options.unix_path = argv[++i];
    } else if (word != "--port" || i + 1 == argc || !parse_port(argv[++i], options.port)) {
      std::fprintf(stderr, "lethe-exec: what is %s? Try --help\n", argv[i]);
      return false;
    }
  }
  return true;
}

// With 0, 1 or 2 closed, a command's pipe would get the number.
void keep_standard_fds() {
  for (int fd = 0; fd <= 2; ++fd)
    if (::fcntl(fd, F_GETFD) == -1 && ::open("/dev/null", O_RDWR) != fd) std::_Exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  keep_standard_fds();
  if (argc == 2 && (std::string_view(argv[1]) == "--help" || std::string_view(argv[1]) == "-h")) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  Options options;
  if (!parse(argc, argv, options)) return 2;
  // Init scripts have none at times.
  (void)::setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 0);
  auto listener = options.unix_path.empty() ? lethe::exec::listen_vsock(options.port)
                                            : lethe::exec::listen_unix(options.unix_path);
  if (!listener) {
    std::fprintf(stderr, "lethe-exec: %s\n", listener.error().c_str());
    return 1;
  }
  if (options.daemon && ::daemon(0, 0) != 0) {
    std::perror("lethe-exec: daemon");
    return 1;
  }
  std::fprintf(stderr, "lethe-exec: %s\n", lethe::exec::serve_all(std::move(*listener)).c_str());
  return 1;
}
