#include "base/event_loop.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <optional>
#include <string>
#include <thread>

#include "base/assert.h"
#include "base/event_loop_asio.h"
#include "base/event_loop_impl.h"
#include "base/mutex.h"
#include "base/unique_fd.h"

namespace lethe {
namespace asio = boost::asio;
using boost::system::error_code;

namespace {

// A registration outlives its Watch while a handler of it is queued or running: hence the shared
// state, which the Watch only marks dead. The callback is destroyed with it, never under its feet.
struct DescriptorState : std::enable_shared_from_this<DescriptorState> {
  DescriptorState(asio::io_context& context, asio::posix::descriptor_base::wait_type wait,
                  EventLoop::Callback call)
      : descriptor(context), type(wait), callback(std::move(call)) {}

  void arm() {
    descriptor.async_wait(type, [self = shared_from_this()](const error_code& error) {
      if (error || !self->live) return;
      self->callback();
      if (self->live) self->arm();
    });
  }

  asio::posix::stream_descriptor descriptor;
  asio::posix::descriptor_base::wait_type type;
  EventLoop::Callback callback;
  bool live = true;
};

class DescriptorWatch : public EventLoop::Watch {
 public:
  explicit DescriptorWatch(std::shared_ptr<DescriptorState> state) : x_state(std::move(state)) {}
  ~DescriptorWatch() override {
    x_state->live = false;
    error_code ignored;
    x_state->descriptor.close(ignored);
  }

 private:
  std::shared_ptr<DescriptorState> x_state;
};

struct TimerState {
  TimerState(asio::io_context& context, EventLoop::Callback call)
      : timer(context), callback(std::move(call)) {}
  asio::steady_timer timer;
  EventLoop::Callback callback;
  uint64_t generation = 0;  // a handler of an older start() finds another number and does nothing
};

class AsioTimer : public EventLoop::Timer {
 public:
  AsioTimer(asio::io_context& context, EventLoop::Callback callback)
      : x_state(std::make_shared<TimerState>(context, std::move(callback))) {}
  ~AsioTimer() override { cancel(); }
  void start(std::chrono::nanoseconds delay) override {
    const uint64_t generation = ++x_state->generation;
    x_state->timer.expires_after(delay);
    x_state->timer.async_wait([state = x_state, generation](const error_code& error) {
      if (!error && state->generation == generation) state->callback();
    });
  }
  void cancel() override {
    ++x_state->generation;
    x_state->timer.cancel();
  }

 private:
  std::shared_ptr<TimerState> x_state;
};

struct SignalState : std::enable_shared_from_this<SignalState> {
  SignalState(asio::io_context& context, std::function<void(int)> call)
      : set(context), callback(std::move(call)) {}
  void arm() {
    set.async_wait([self = shared_from_this()](const error_code& error, int signal) {
      if (error || !self->live) return;
      self->callback(signal);
      if (self->live) self->arm();
    });
  }
  asio::signal_set set;
  std::function<void(int)> callback;
  bool live = true;
};

class SignalWatch : public EventLoop::Watch {
 public:
  explicit SignalWatch(std::shared_ptr<SignalState> state) : x_state(std::move(state)) {}
  ~SignalWatch() override {
    x_state->live = false;
    error_code ignored;
    // clear() alone forgets the set but keeps its waiting handler, which owns the state: a leak.
    x_state->set.cancel(ignored);
    x_state->set.clear(ignored);
  }

 private:
  std::shared_ptr<SignalState> x_state;
};

// Asio takes a descriptor that epoll refuses (a regular file, /dev/null) without a word, and never
// calls back. So ask epoll first.
Result<> check_pollable(int fd) {
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return host_error("epoll_create1: {}", errno_text(errno));
  epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    return host_error("cannot watch descriptor {}: {}", fd, errno_text(errno));
  return {};
}

using Wait = EventLoop::Impl::Wait;
constexpr auto wait_type(Wait wait) {
  switch (wait) {
    case Wait::kReadable:
      return asio::posix::descriptor_base::wait_read;
    case Wait::kWritable:
      return asio::posix::descriptor_base::wait_write;
    case Wait::kPriority:
      break;
  }
  return asio::posix::descriptor_base::wait_error;
}

class AsioEngine final : public EventLoop::Impl {
 public:
  Result<std::unique_ptr<EventLoop::Watch>> watch(int fd, Wait wait,
                                                  EventLoop::Callback callback) override {
    LETHE_TRY(check_pollable(fd));
    // A duplicate, since the registration closes what it holds, and since one descriptor can be
    // registered only once with epoll while we may want both directions of it.
    UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy.valid())
      return host_error("cannot duplicate descriptor {}: {}", fd, errno_text(errno));
    auto state = std::make_shared<DescriptorState>(x_context, wait_type(wait), std::move(callback));
    error_code error;
    state->descriptor.assign(copy.get(), error);
    if (error) return host_error("cannot watch descriptor {}: {}", fd, error.message());
    (void)copy.release();
    state->arm();
    return std::make_unique<DescriptorWatch>(std::move(state));
  }
  Result<std::unique_ptr<EventLoop::Watch>> watch_event(int event_fd,
                                                        EventLoop::Callback callback) override {
    return watch(event_fd, Wait::kReadable, [event_fd, callback = std::move(callback)] {
      uint64_t count = 0;
      if (::read(event_fd, &count, sizeof count) > 0) callback();
    });
  }
  std::unique_ptr<EventLoop::Timer> make_timer(EventLoop::Callback callback) override {
    return std::make_unique<AsioTimer>(x_context, std::move(callback));
  }
  void post(EventLoop::Callback work) override { asio::post(x_context, std::move(work)); }
  void run() override {
    x_context.restart();
    x_context.run();
  }
  void stop() override {
    asio::post(x_context, [this] { x_context.stop(); });
  }
  asio::io_context* asio() override { return &x_context; }

 private:
  asio::io_context x_context{1};
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> x_work{
      x_context.get_executor()};
};

}  // namespace

EventLoop::EventLoop(Engine engine)
    : x_impl(engine == Engine::kEpoll ? make_epoll_engine() : std::make_unique<AsioEngine>()) {}
EventLoop::~EventLoop() = default;

Result<std::unique_ptr<EventLoop::Watch>> EventLoop::watch_readable(int fd, Callback callback) {
  return x_impl->watch(fd, Wait::kReadable, std::move(callback));
}
Result<std::unique_ptr<EventLoop::Watch>> EventLoop::watch_writable(int fd, Callback callback) {
  return x_impl->watch(fd, Wait::kWritable, std::move(callback));
}
Result<std::unique_ptr<EventLoop::Watch>> EventLoop::watch_priority(int fd, Callback callback) {
  return x_impl->watch(fd, Wait::kPriority, std::move(callback));
}
Result<std::unique_ptr<EventLoop::Watch>> EventLoop::watch_event(int event_fd, Callback callback) {
  return x_impl->watch_event(event_fd, std::move(callback));
}
std::unique_ptr<EventLoop::Timer> EventLoop::make_timer(Callback callback) {
  return x_impl->make_timer(std::move(callback));
}

Result<std::unique_ptr<EventLoop::Watch>> EventLoop::watch_signals(
    std::initializer_list<int> signals, std::function<void(int)> callback) {
  auto state = std::make_shared<SignalState>(asio_context(*this), std::move(callback));
  for (const int signal : signals) {
    error_code error;
    state->set.add(signal, error);
    if (error) return host_error("cannot watch signal {}: {}", signal, error.message());
  }
  state->arm();
  return std::make_unique<SignalWatch>(std::move(state));
}

asio::io_context& asio_context(EventLoop& loop) {
  asio::io_context* const context = loop.x_impl->asio();
  LETHE_ASSERT(context != nullptr);
  return *context;
}

void EventLoop::post(Callback work) { x_impl->post(std::move(work)); }
void EventLoop::run() { x_impl->run(); }
void EventLoop::stop() { x_impl->stop(); }

struct IoThread::Impl {
  std::thread thread;
};

IoThread::IoThread(const char* name)
    : x_loop(std::make_unique<EventLoop>(EventLoop::Engine::kEpoll)),
      x_impl(std::make_unique<Impl>()) {
  x_impl->thread = std::thread([loop = x_loop.get(), name = std::string(name).substr(0, 15)] {
    pthread_setname_np(pthread_self(), name.c_str());
    loop->run();
  });
}

IoThread::~IoThread() {
  x_loop->stop();
  x_impl->thread.join();
}

void IoThread::run_and_wait(std::function<void()> work) {
  LETHE_ASSERT(x_impl->thread.get_id() != std::this_thread::get_id());
  Mutex mutex;
  CondVar done_changed;
  bool done = false;
  x_loop->post([&] {
    work();
    MutexLock lock(mutex);
    done = true;
    done_changed.notify_one();  // under the lock: the waiter destroys both after it
  });
  MutexLock lock(mutex);
  while (!done) done_changed.wait(mutex);
}

}  // namespace lethe
