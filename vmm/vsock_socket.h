// The Unix socket of a VM's vsock device, on which host programs connect: made before the machine,
// kept over reboots, so that who connects meanwhile waits.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "vmm/config.h"
#include "vmm/run_dir.h"

namespace lethe {

class VsockSocket {
 public:
  VsockSocket(std::string path, UniqueFd fd) : x_path(std::move(path)), x_fd(std::move(fd)) {}
  ~VsockSocket();  // removes it
  VsockSocket(const VsockSocket&) = delete;
  VsockSocket& operator=(const VsockSocket&) = delete;
  [[nodiscard]] const std::string& path() const { return x_path; }
  [[nodiscard]] int fd() const { return x_fd.get(); }

 private:
  const std::string x_path;
  const UniqueFd x_fd;
};

// Null if vsock.enabled is false; then nothing was made. One that is elsewhere, by vsock.path, has
// a symbolic link in the run-time directory, where clients look for it. A socket that a process
// which is no more has left at vsock.path is replaced; everything else that is there is an error,
// and so is a path without room for a port's number behind it. Main thread.
[[nodiscard]] Result<std::unique_ptr<VsockSocket>> make_vsock_socket(const VmConfig& config,
                                                                     const RunDir& run_dir);
// The same for a path.
[[nodiscard]] Result<std::unique_ptr<VsockSocket>> make_vsock_socket(const std::string& path);

}  // namespace lethe
