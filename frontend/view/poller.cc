#include "frontend/view/poller.h"

#include <SDL2/SDL_events.h>
#include <SDL2/SDL_timer.h>
#include <poll.h>

#include <utility>

namespace lethe::gui {

Poller::Poller(int socket, uint32_t event_type, EventFd resume, EventFd stop)
    : x_socket(socket),
      x_event_type(event_type),
      x_resume(std::move(resume)),
      x_stop(std::move(stop)),
      x_events(POLLIN),
      x_thread([this] { run(); }) {}

Poller::~Poller() {
  x_stop.signal();
  x_thread.join();
}

void Poller::resume(short events) {
  x_events.store(events, std::memory_order_relaxed);  // the eventfd orders it
  x_resume.signal();
}

void Poller::run() {
  bool pushed = false;  // the main thread has not answered yet
  while (true) {
    pollfd waiting[] = {{.fd = x_stop.fd(), .events = POLLIN, .revents = 0},
                        {.fd = x_resume.fd(), .events = POLLIN, .revents = 0},
                        {.fd = pushed ? -1 : x_socket,
                         .events = x_events.load(std::memory_order_relaxed),
                         .revents = 0}};
    if (::poll(waiting, 3, -1) < 0) continue;  // EINTR
    if (waiting[0].revents != 0) return;
    if (waiting[1].revents != 0) {
      (void)x_resume.take();
      pushed = false;
      continue;
    }
    SDL_Event event{};
    event.type = x_event_type;
    pushed = SDL_PushEvent(&event) == 1;
    // A full queue: SDL's queue is served by the main thread, which is late; not a busy loop.
    if (!pushed) SDL_Delay(10);
  }
}

}  // namespace lethe::gui
