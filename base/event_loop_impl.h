// What an event loop does its work with: base/event_loop.cc has the one over Boost.Asio,
// base/event_loop_epoll.cc the one over epoll alone. EventLoop's functions document these.
#pragma once

#include "base/event_loop.h"

namespace lethe {

struct EventLoop::Impl {
  enum class Wait : uint8_t { kReadable, kWritable, kPriority };

  virtual ~Impl() = default;
  [[nodiscard]] virtual Result<std::unique_ptr<Watch>> watch(int fd, Wait wait,
                                                             Callback callback) = 0;
  [[nodiscard]] virtual Result<std::unique_ptr<Watch>> watch_event(int event_fd,
                                                                   Callback callback) = 0;
  [[nodiscard]] virtual std::unique_ptr<Timer> make_timer(Callback callback) = 0;
  virtual void post(Callback work) = 0;
  virtual void run() = 0;
  virtual void stop() = 0;
  // For what only Asio does: signals, HTTP. Null in a loop without it.
  [[nodiscard]] virtual boost::asio::io_context* asio() { return nullptr; }
};

// base/event_loop_epoll.cc
[[nodiscard]] std::unique_ptr<EventLoop::Impl> make_epoll_engine();

}  // namespace lethe
