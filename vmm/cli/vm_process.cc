#include "vmm/cli/vm_process.h"

#include <poll.h>
#include <sys/syscall.h>

#include <cstdlib>

namespace lethe {

Result<VmProcess> VmProcess::open(const RunningVm& vm) {
  const auto pid = static_cast<pid_t>(std::strtol(vm.pid.c_str(), nullptr, 10));
  if (pid <= 0) return host_error("'{}' does not say which process it is", vm.name);
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd.valid() && errno != ESRCH)
    return host_error("'{}' (process {}): {}", vm.name, vm.pid, errno_text(errno));
  // Whoever has the number now: it is the VM only if the VM's lock is still held under it.
  LETHE_TRY_ASSIGN(const RunningVm now,
                   find_running_vm(vm.name, RunDirRoots::of_this_process(), {}));
  if (!fd.valid() || now.pid != vm.pid)
    return host_error("'{}' has ended or started anew meanwhile", vm.name);
  return VmProcess(std::move(fd));
}

bool VmProcess::ended() const {
  pollfd waiting{x_fd.get(), POLLIN, 0};
  return ::poll(&waiting, 1, 0) > 0;
}

void VmProcess::send(int signal) const {
  (void)::syscall(SYS_pidfd_send_signal, x_fd.get(), signal, nullptr, 0);
}

}  // namespace lethe
