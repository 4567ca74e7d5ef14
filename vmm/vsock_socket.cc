#include "vmm/vsock_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/descriptor_limit.h"
#include "base/unix_socket.h"
#include "devices/virtio/vsock/vsock.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

// Whether `path` is a socket that nobody listens on any more.
bool left_behind(const std::string& path) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  return probe.valid() && connect_unix(probe.get(), path) != 0 && errno == ECONNREFUSED;
}

}  // namespace

VsockSocket::~VsockSocket() { (void)::unlink(x_path.c_str()); }

Result<std::unique_ptr<VsockSocket>> make_vsock_socket(const VmConfig& config,
                                                       const RunDir& run_dir) {
  if (!config.vsock.enabled) return nullptr;
  raise_descriptor_limit();  // each stream is one
  const std::string usual = run_dir.path() + "/" + kVsockSocketName;
  if (config.vsock.path.empty()) return make_vsock_socket(usual);
  LETHE_TRY_ASSIGN(auto made, make_vsock_socket(config.vsock.path));
  // EEXIST: the directory was empty, so it is the socket itself, by another name.
  const std::string target = std::filesystem::absolute(config.vsock.path);
  if (::symlink(target.c_str(), usual.c_str()) != 0 && errno != EEXIST)
    return host_error("cannot make '{}': {}", usual, errno_text(errno));
  return made;
}

Result<std::unique_ptr<VsockSocket>> make_vsock_socket(const std::string& path) {
  if (path.size() + kVsockPortDigits > kUnixPathMax)
    return host_error(
        "vsock: '{}' leaves no room for '_' and a port: set vsock.path to at most {} bytes",
        printable(path), kUnixPathMax - kVsockPortDigits);
  if (left_behind(path)) (void)::unlink(path.c_str());
  LETHE_TRY_ASSIGN(UniqueFd fd, listen_unix(path));
  return std::make_unique<VsockSocket>(path, std::move(fd));
}

}  // namespace lethe
