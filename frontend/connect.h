// Finds a VM's GUI channel. One thread.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe::gui {

// What a frontend's command line says: a VM's name, or the path of a socket.
struct Target {
  std::string name;
  std::string socket;  // used if not empty
};

// The directory that has the VMs' directories, by the rules of vmm/run_dir.h:
// $XDG_RUNTIME_DIR/lethe, else /run/user/UID/lethe, else /tmp/lethe-UID.
[[nodiscard]] std::string run_root();

// The run-time directory of a VM by that name, and its GUI socket. Nothing is looked at.
// Error (kConfig): it can't be a VM's name.
[[nodiscard]] Result<std::string> run_dir_of(const std::string& name);
[[nodiscard]] Result<std::string> gui_socket_path(const Target& target);

// Connects, close-on-exec. Errors name the path and the way out: kHost: the VM does not run, has no
// GUI, or the socket belongs to another user; kConfig: see above.
[[nodiscard]] Result<UniqueFd> connect_socket(const Target& target);

}  // namespace lethe::gui
