// A queue's kick, watched on an event loop that belongs to others (the main loop).
#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "base/event_fd.h"
#include "base/event_loop.h"

namespace lethe {

// A transport starts and stops queues on vCPU threads, and must not wait for the main loop there:
// the main loop may be waiting for that vCPU to stop. So nothing here waits. Construction and
// destruction are for any thread; `on_kick` runs on the loop's thread: once after construction
// without a kick, then for each. It may be running while another thread destroys the watch, and
// does not start after that: the device takes its lock in it and looks whether its queue is there.
//
// Whatever the functions refer to must be destroyed on the loop's thread, or when the loop does not
// run.
class KickWatch {
 public:
  // `kick` may go away at any time: it is duplicated. If that or watching it fails, it is logged,
  // and `on_failure` runs instead, once, as `on_kick` would: the queue would never be served, so
  // the device needs a reset.
  KickWatch(EventLoop& loop, const EventFd& kick, std::function<void()> on_kick,
            std::function<void()> on_failure);
  static constexpr const char* kFailure = "the host is out of descriptors";
  ~KickWatch();
  KickWatch(const KickWatch&) = delete;
  KickWatch& operator=(const KickWatch&) = delete;

 private:
  struct State;
  EventLoop& x_loop;
  std::shared_ptr<State> x_state;
};

}  // namespace lethe
