// One thread's event loop: descriptors, timers, posted work. Boost.Asio stays behind it
// (base/event_loop.cc), so that no other file pays for its headers; so does the leaner engine of
// the device threads (base/event_loop_epoll.cc).
//
// Threading: run() is called by one thread, which then runs every callback. post() and stop() may
// be called from any thread; everything else only from the loop's thread, or before run().
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/result.h"

namespace boost::asio {
class io_context;
}

namespace lethe {

class EventLoop {
 public:
  using Callback = std::function<void()>;
  struct Impl;  // base/event_loop_impl.h
  enum class Engine : uint8_t {
    kAsio,   // has all there is here
    kEpoll,  // no signals and no Asio: what IoThread runs
  };

  explicit EventLoop(Engine engine = Engine::kAsio);
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // A registration; destroying it ends it: the callback is not called any more. It does not take
  // over the descriptor. It must not outlive the loop.
  class Watch {
   public:
    virtual ~Watch() = default;
  };

  // Calls `callback` each time `fd` is readable (level triggered: it must read). Fails when the
  // descriptor can't be polled (a regular file, /dev/null) or the process is out of memory or
  // watches.
  [[nodiscard]] Result<std::unique_ptr<Watch>> watch_readable(int fd, Callback callback);
  // The same for writable.
  [[nodiscard]] Result<std::unique_ptr<Watch>> watch_writable(int fd, Callback callback);

  // Calls `callback` after each write to an eventfd, or once for several close together. It need
  // not read the descriptor, and nobody else may.
  [[nodiscard]] Result<std::unique_ptr<Watch>> watch_event(int event_fd, Callback callback);

  // Calls `callback` when `fd` has an exceptional condition (POLLPRI), or an error (POLLERR); it
  // must tell which by poll(2), and end a watch that reports an error, which lasts. A poll that is
  // not the watch's own may take the event away, for descriptors that forget it then (PSI
  // triggers).
  [[nodiscard]] Result<std::unique_ptr<Watch>> watch_priority(int fd, Callback callback);

  class Timer {
   public:
    virtual ~Timer() = default;
    // Calls the callback once, `delay` from now; replaces what was set before.
    virtual void start(std::chrono::nanoseconds delay) = 0;
    virtual void cancel() = 0;
  };
  [[nodiscard]] std::unique_ptr<Timer> make_timer(Callback callback);

  // Calls `callback` when one of the signals arrives. Only one loop of a process watches signals;
  // its engine is Asio.
  [[nodiscard]] Result<std::unique_ptr<Watch>> watch_signals(std::initializer_list<int> signals,
                                                             std::function<void(int)> callback);

  void post(Callback work);
  // Runs until stop(); work posted before stop() was called has run by then.
  void run();
  void stop();

 private:
  friend boost::asio::io_context& asio_context(EventLoop& loop);  // base/event_loop_asio.h
  std::unique_ptr<Impl> x_impl;
};

// A thread with an event loop, named as `ps -L` and the debugger show it (15 characters at most).
// The destructor stops the loop and joins.
class IoThread {
 public:
  explicit IoThread(const char* name);
  ~IoThread();
  [[nodiscard]] EventLoop& loop() { return *x_loop; }
  // Runs `work` on the thread and waits for its end. Not from the thread itself.
  void run_and_wait(std::function<void()> work);

 private:
  struct Impl;
  std::unique_ptr<EventLoop> x_loop;
  std::unique_ptr<Impl> x_impl;
};

}  // namespace lethe
