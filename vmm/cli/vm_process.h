// The process of a running VM, for the commands that end it.
#pragma once

#include "base/result.h"
#include "base/unique_fd.h"
#include "vmm/run_dir.h"

namespace lethe {

class VmProcess {
 public:
  // Fails (kHost) when the VM has ended meanwhile, or its process can't be told.
  [[nodiscard]] static Result<VmProcess> open(const RunningVm& vm);
  // Readable (poll) when it has ended; its name is free then.
  [[nodiscard]] int fd() const { return x_fd.get(); }
  [[nodiscard]] bool ended() const;
  // Harmless when it has ended. Never another process, whose number may be the same by now.
  void send(int signal) const;

 private:
  explicit VmProcess(UniqueFd fd) : x_fd(std::move(fd)) {}
  UniqueFd x_fd;  // a pidfd
};

}  // namespace lethe
