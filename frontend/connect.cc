#include "frontend/connect.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/unix_socket.h"
#include "frontend/check.h"

namespace lethe::gui {
namespace {

constexpr const char* kSocketName = "gui.sock";  // kGuiSocketName in vmm/run_dir.h

// vmm/config_schema.h's valid_vm_name().
constexpr size_t kNameMax = 64;
bool can_be_name(const std::string& name) {
  const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  return !name.empty() && name.size() <= kNameMax && plain(name.front()) &&
         std::all_of(name.begin(), name.end(),
                     [&](char c) { return plain(c) || c == '.' || c == '_' || c == '-'; });
}

Unexpected cannot_connect(const Target& target, const std::string& path, int error) {
  const std::string shown = shown_text(path.data(), path.size());
  if (target.socket.empty() && (error == ENOENT || error == ECONNREFUSED))
    return host_error(
        "VM '{}' does not run, or runs without a GUI ({}: {}); `lethe top` lists what runs, "
        "[gui] enabled = true in the config gives it one",
        target.name, shown, errno_text(error));
  return host_error("cannot connect to '{}': {}", shown, errno_text(error));
}

}  // namespace

std::string run_root() {
  const char* xdg = std::getenv("XDG_RUNTIME_DIR");
  if (xdg != nullptr && xdg[0] == '/') return std::string(xdg) + "/lethe";
  const std::string uid = std::to_string(::geteuid());
  struct stat status{};
  if (::stat(("/run/user/" + uid).c_str(), &status) == 0 && S_ISDIR(status.st_mode))
    return "/run/user/" + uid + "/lethe";
  return "/tmp/lethe-" + uid;
}

Result<std::string> run_dir_of(const std::string& name) {
  if (!can_be_name(name))
    return config_error(
        "'{}' is no VM's name: a-z, 0-9, and after the first '.', '_', '-'; {} at most",
        shown_text(name.data(), name.size()), kNameMax);
  return run_root() + "/" + name;
}

Result<std::string> gui_socket_path(const Target& target) {
  if (!target.socket.empty()) return target.socket;
  LETHE_TRY_ASSIGN(const std::string directory, run_dir_of(target.name));
  return directory + "/" + kSocketName;
}

Result<UniqueFd> connect_socket(const Target& target) {
  LETHE_TRY_ASSIGN(const std::string path, gui_socket_path(target));
  if (path.size() > kUnixPathMax)
    return config_error("'{}' is too long for a socket's path",
                        shown_text(path.data(), path.size()));
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return host_error("cannot make a socket: {}", errno_text(errno));
  if (connect_unix(socket.get(), path) != 0) return cannot_connect(target, path, errno);
  // In /tmp another user may have made the directory first. Whom --socket names is the user's word.
  ucred peer{};
  socklen_t size = sizeof peer;
  if (target.socket.empty() &&
      (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
       (peer.uid != ::geteuid() && peer.uid != 0)))
    return host_error("'{}' belongs to user {}: it is not yours", path, peer.uid);
  return socket;
}

}  // namespace lethe::gui
