// Lets one wait see both SDL's queue and the GUI channel's socket: a thread sleeps in poll(2) on
// the socket and pushes an SDL event when there is something to do; then it waits to be resumed.
// Nobody polls in turns: an idle viewer does not run.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "base/event_fd.h"

namespace lethe::gui {

class Poller {
 public:
  // Starts to watch. `event_type` is a registered SDL event type. The socket must stay open until
  // the poller is destroyed.
  Poller(int socket, uint32_t event_type, EventFd resume, EventFd stop);
  ~Poller();
  Poller(const Poller&) = delete;
  Poller& operator=(const Poller&) = delete;

  // After the event, or when what to wait for has changed: poll again, for `events`.
  void resume(short events);

 private:
  void run();
  int x_socket;
  uint32_t x_event_type;
  EventFd x_resume;
  EventFd x_stop;
  std::atomic<short> x_events;
  std::thread x_thread;
};

}  // namespace lethe::gui
