#include "base/event_fd.h"

#include <sys/eventfd.h>

namespace lethe {

Result<EventFd> EventFd::create() {
  UniqueFd fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!fd.valid()) return host_error("eventfd: {}", errno_text(errno));
  return EventFd(std::move(fd));
}

void EventFd::signal() const {
  // EAGAIN means the counter is at its maximum: the other side is signalled already.
  (void)!::eventfd_write(x_fd.get(), 1);
}

uint64_t EventFd::take() const {
  eventfd_t value = 0;
  return ::eventfd_read(x_fd.get(), &value) == 0 ? value : 0;
}

}  // namespace lethe
