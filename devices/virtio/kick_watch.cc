#include "devices/virtio/kick_watch.h"

#include <fcntl.h>

#include "base/log.h"
#include "base/unique_fd.h"

namespace lethe {

struct KickWatch::State {
  UniqueFd kick;
  std::function<void()> on_kick;
  std::atomic<bool> live{true};
  std::unique_ptr<EventLoop::Watch> watch;  // loop's thread

  void kicked() {
    if (live.load(std::memory_order_acquire)) on_kick();
  }
};

KickWatch::KickWatch(EventLoop& loop, const EventFd& kick, std::function<void()> on_kick,
                     std::function<void()> on_failure)
    : x_loop(loop), x_state(std::make_shared<State>()) {
  x_state->kick.reset(::fcntl(kick.fd(), F_DUPFD_CLOEXEC, 0));
  x_state->on_kick = std::move(on_kick);
  const int failed = x_state->kick.valid() ? 0 : errno;
  x_loop.post([&loop, failed, on_failure = std::move(on_failure), state = x_state] {
    if (!state->live.load(std::memory_order_acquire)) return;
    auto watch = failed != 0
                     ? host_error("{}", errno_text(failed))
                     : loop.watch_event(state->kick.get(), [raw = state.get()] { raw->kicked(); });
    if (!watch) {
      LETHE_LOG_LIMITED(LogModule::kVirtio, "cannot watch a queue's kicks: {}", watch.error().text);
      return on_failure();
    }
    state->watch = std::move(*watch);
    state->on_kick();
  });
}

KickWatch::~KickWatch() {
  x_state->live.store(false, std::memory_order_release);
  x_loop.post([state = x_state] { state->watch.reset(); });
}

}  // namespace lethe
