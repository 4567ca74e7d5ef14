// The run-time directory of a VM: where its sockets are, and the lock by which a name runs once.
//
// $XDG_RUNTIME_DIR/lethe/NAME/, else /run/user/UID/lethe/NAME/, else /tmp/lethe-UID/NAME/; mode
// 0700, owned by this user (in /tmp another user may have been there first: then it is refused).
// Its file `lock` is held with flock and names the process and its config, so the directory of a
// process that died is recognised as stale, emptied and reused. The lock comes before the sockets;
// set_ready() says in it that they are there, and who looks for a VM waits for that. Main thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

// Where run-time directories may be; tests put their own.
struct RunDirRoots {
  std::string xdg;        // $XDG_RUNTIME_DIR; used if absolute
  std::string run_user;   // "/run/user/UID"; used if it is there
  std::string temporary;  // "/tmp/lethe-UID"; made if it is not there
  [[nodiscard]] static RunDirRoots of_this_process();
};

inline constexpr const char* kApiSocketName = "api.sock";          // the control API, vmm/api/
inline constexpr const char* kGuiSocketName = "gui.sock";          // the GUI channel, devices/gui/
inline constexpr const char* kConsoleSocketName = "console.sock";  // vmm/console_host.h
// Streams to the guest, devices/virtio/vsock/; host programs listen on it with `_PORT` behind it.
inline constexpr const char* kVsockSocketName = "vsock.sock";
// Of detached VMs (vmm/detach.h); they stay when the VM has ended, until the name is used again.
inline constexpr const char* kMessagesName = "messages";  // what the VM itself said: standard error
inline constexpr const char* kLastConsoleName = "console";  // what was printed last before the end

class RunDir {
 public:
  // Makes and locks the directory for a valid name (valid_vm_name). Errors (kHost), one line each:
  // the name runs already (as which process, since when, from which config), the directory can't be
  // written, belongs to another user, or its path leaves no room for a socket's name (sun_path, 107
  // bytes). `config_file` is told to those who ask who has the name.
  [[nodiscard]] static Result<RunDir> create(
      const std::string& name, const RunDirRoots& roots = RunDirRoots::of_this_process(),
      const std::string& config_file = {});

  RunDir(RunDir&&) noexcept = default;
  RunDir& operator=(RunDir&&) = delete;
  // Removes the directory with its lock and sockets.
  ~RunDir();

  // All sockets listen that this VM will have. Once; it writes a few bytes.
  void set_ready() const;

  [[nodiscard]] const std::string& path() const { return x_path; }  // no slash at its end

 private:
  RunDir(std::string path, UniqueFd directory, UniqueFd lock)
      : x_path(std::move(path)), x_directory(std::move(directory)), x_lock(std::move(lock)) {}
  std::string x_path;
  UniqueFd x_directory;
  UniqueFd x_lock;  // invalid once moved from
};

// The directory that has all VMs' directories, made if need be, and ours alone: for further locks
// beside them. Errors as RunDir::create()'s.
[[nodiscard]] Result<UniqueFd> open_run_root(
    const RunDirRoots& roots = RunDirRoots::of_this_process());

struct RunningVm {
  std::string name;
  std::string path;         // its run-time directory
  std::string pid;          // digits; "unknown" if the lock does not say
  std::string config = {};  // its config file; empty if the lock does not say
  time_t since = 0;         // when it started; 0 if the lock does not say
};

// A VM that starts just now is waited for, so that a client finds all of its sockets; this long at
// most, for all that are looked for together.
inline constexpr std::chrono::milliseconds kReadyPatience{2000};

// The VMs of this user that run now, by name: directories whose lock is held. Those that a crash
// left behind are not among them; those that start are, ready or not after kReadyPatience. Nothing
// is made.
[[nodiscard]] std::vector<RunningVm> running_vms(
    const RunDirRoots& roots = RunDirRoots::of_this_process());

// The run-time directory that a VM of that name has or had; the name is valid. It may be missing.
[[nodiscard]] std::string run_dir_path(const std::string& name,
                                       const RunDirRoots& roots = RunDirRoots::of_this_process());

// The VM of that name, whose start alone is waited for, `patience` at most. The error (kHost) says
// which VMs run instead, if any.
[[nodiscard]] Result<RunningVm> find_running_vm(
    const std::string& name, const RunDirRoots& roots = RunDirRoots::of_this_process(),
    std::chrono::milliseconds patience = kReadyPatience);

}  // namespace lethe
