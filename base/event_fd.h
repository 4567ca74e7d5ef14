// An eventfd: how vCPUs wake device threads (ioeventfd) and devices interrupt vCPUs (irqfd).
#pragma once

#include <cstdint>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

class EventFd {
 public:
  // Non-blocking, close-on-exec, counter 0. Fails when the process is out of descriptors.
  [[nodiscard]] static Result<EventFd> create();

  // Adds 1. Any thread. Never blocks: a counter at its maximum is signalled already.
  void signal() const;
  // Takes the counter and sets it to 0; 0 if nothing was signalled. Any thread.
  uint64_t take() const;
  [[nodiscard]] int fd() const { return x_fd.get(); }

 private:
  explicit EventFd(UniqueFd fd) : x_fd(std::move(fd)) {}
  UniqueFd x_fd;
};

}  // namespace lethe
