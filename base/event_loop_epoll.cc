// An event loop over epoll alone, for the threads of devices: a wake-up costs the epoll_wait()
// that it comes by and what the callback does. (Asio arms a descriptor anew after each callback and
// looks for more before it sleeps: three system calls more, which a kick and a frame of a few
// microseconds feel.)
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <iterator>
#include <thread>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/event_fd.h"
#include "base/event_loop_impl.h"
#include "base/mutex.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;
constexpr Clock::time_point kNever = Clock::time_point::max();
constexpr int kEventsMax = 32;  // of one wake-up; the rest comes with the next

class EpollEngine final : public EventLoop::Impl {
 public:
  EpollEngine();
  ~EpollEngine() override;

  Result<std::unique_ptr<EventLoop::Watch>> watch(int fd, Wait wait,
                                                  EventLoop::Callback callback) override;
  Result<std::unique_ptr<EventLoop::Watch>> watch_event(int event_fd,
                                                        EventLoop::Callback callback) override;
  std::unique_ptr<EventLoop::Timer> make_timer(EventLoop::Callback callback) override;
  void post(EventLoop::Callback work) override LETHE_EXCLUDES(x_mutex);
  void run() override;
  void stop() override;

 private:
  // A registration. It outlives its Watch while events for it may be in hand, or its callback runs:
  // it is destroyed between two waits then.
  struct Descriptor {
    UniqueFd fd;
    EventLoop::Callback callback;
    bool live = true;
  };
  class DescriptorWatch;
  struct Timer;
  class TimerHandle;

  Result<std::unique_ptr<EventLoop::Watch>> add(int fd, uint32_t events,
                                                EventLoop::Callback callback);
  void remove(std::unique_ptr<Descriptor> descriptor);
  void set_alarm();
  void wait();
  void fire_timers();
  void run_posted() LETHE_EXCLUDES(x_mutex);
  [[nodiscard]] bool has_posted() const LETHE_EXCLUDES(x_mutex) {
    MutexLock lock(x_mutex);
    return !x_posted.empty();
  }

  UniqueFd x_epoll;
  EventFd x_wake;                         // signalled by the first post() after the queue was empty
  std::atomic<std::thread::id> x_thread;  // inside run(); only that thread ever finds itself there
  bool x_stopped = false;
  bool x_running = false;  // inside run(): what is removed may still be in use
  std::vector<std::unique_ptr<Descriptor>> x_removed;
  UniqueFd x_alarm;  // a timerfd
  Clock::time_point x_alarm_at = kNever;
  std::vector<std::shared_ptr<Timer>> x_timers;  // those that are set; there are few
  std::vector<std::shared_ptr<Timer>> x_due;     // of fire_timers(), kept for its memory
  std::vector<EventLoop::Callback> x_now;        // of run_posted()
  mutable Mutex x_mutex;
  std::vector<EventLoop::Callback> x_posted LETHE_GUARDED_BY(x_mutex);
};

class EpollEngine::DescriptorWatch final : public EventLoop::Watch {
 public:
  DescriptorWatch(EpollEngine& engine, std::unique_ptr<Descriptor> descriptor)
      : x_engine(engine), x_descriptor(std::move(descriptor)) {}
  ~DescriptorWatch() override { x_engine.remove(std::move(x_descriptor)); }

 private:
  EpollEngine& x_engine;
  std::unique_ptr<Descriptor> x_descriptor;
};

struct EpollEngine::Timer {
  EventLoop::Callback callback;
  Clock::time_point at;
  bool set = false;
};

class EpollEngine::TimerHandle final : public EventLoop::Timer {
 public:
  TimerHandle(EpollEngine& engine, EventLoop::Callback callback)
      : x_engine(engine), x_timer(std::make_shared<EpollEngine::Timer>()) {
    x_timer->callback = std::move(callback);
  }
  ~TimerHandle() override { cancel(); }
  void start(std::chrono::nanoseconds delay) override {
    x_timer->at = Clock::now() + delay;
    if (!std::exchange(x_timer->set, true)) x_engine.x_timers.push_back(x_timer);
  }
  void cancel() override {
    if (std::exchange(x_timer->set, false)) std::erase(x_engine.x_timers, x_timer);
  }

 private:
  EpollEngine& x_engine;
  std::shared_ptr<EpollEngine::Timer> x_timer;
};

EventFd must_create_event() {
  auto event = EventFd::create();
  LETHE_ASSERT(event);
  return std::move(*event);
}

EpollEngine::EpollEngine()
    : x_epoll(::epoll_create1(EPOLL_CLOEXEC)),
      x_wake(must_create_event()),
      x_alarm(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)) {
  LETHE_ASSERT(x_epoll.valid() && x_alarm.valid());
  // Edge triggered: nobody reads them.
  for (const int fd : {x_wake.fd(), x_alarm.get()}) {
    epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
    LETHE_ASSERT(::epoll_ctl(x_epoll.get(), EPOLL_CTL_ADD, fd, &event) == 0);
  }
}

EpollEngine::~EpollEngine() {
  // Work that never ran may hold watches and timers of this loop.
  for (;;) {
    std::vector<EventLoop::Callback> work;
    {
      MutexLock lock(x_mutex);
      work.swap(x_posted);
    }
    if (work.empty()) return;
  }
}

Result<std::unique_ptr<EventLoop::Watch>> EpollEngine::add(int fd, uint32_t events,
                                                           EventLoop::Callback callback) {
  // A duplicate: one descriptor can be registered only once with epoll while we may want both
  // directions of it, and a registration must not turn into another file's when its number does.
  auto descriptor = std::make_unique<Descriptor>(
      Descriptor{UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), std::move(callback)});
  if (!descriptor->fd.valid())
    return host_error("cannot duplicate descriptor {}: {}", fd, errno_text(errno));
  epoll_event event{.events = events, .data = {.ptr = descriptor.get()}};
  if (::epoll_ctl(x_epoll.get(), EPOLL_CTL_ADD, descriptor->fd.get(), &event) != 0)
    return host_error("cannot watch descriptor {}: {}", fd, errno_text(errno));
  return std::make_unique<DescriptorWatch>(*this, std::move(descriptor));
}

void EpollEngine::remove(std::unique_ptr<Descriptor> descriptor) {
  descriptor->live = false;
  epoll_event unused{};
  (void)::epoll_ctl(x_epoll.get(), EPOLL_CTL_DEL, descriptor->fd.get(), &unused);
  descriptor->fd.reset();
  if (x_running) x_removed.push_back(std::move(descriptor));
}

Result<std::unique_ptr<EventLoop::Watch>> EpollEngine::watch(int fd, Wait wait,
                                                             EventLoop::Callback callback) {
  switch (wait) {
    case Wait::kReadable:
      return add(fd, EPOLLIN, std::move(callback));
    case Wait::kWritable:
      return add(fd, EPOLLOUT, std::move(callback));
    case Wait::kPriority:
      break;
  }
  // Edge triggered: each event wakes us once, however often others look at the descriptor.
  return add(fd, EPOLLPRI | EPOLLET, std::move(callback));
}

Result<std::unique_ptr<EventLoop::Watch>> EpollEngine::watch_event(int event_fd,
                                                                   EventLoop::Callback callback) {
  // Edge triggered: every write to an eventfd is an event of its own (epoll(7), eventfd(2)), so
  // nobody has to read it. Its counter has room for 2^64 - 2 of them.
  return add(event_fd, EPOLLIN | EPOLLET, std::move(callback));
}

std::unique_ptr<EventLoop::Timer> EpollEngine::make_timer(EventLoop::Callback callback) {
  return std::make_unique<TimerHandle>(*this, std::move(callback));
}

void EpollEngine::post(EventLoop::Callback work) {
  {
    MutexLock lock(x_mutex);
    x_posted.push_back(std::move(work));
    if (x_posted.size() > 1) return;  // who posted the first one woke the loop
  }
  // The loop's own thread looks before it waits.
  if (x_thread.load(std::memory_order_relaxed) != std::this_thread::get_id()) x_wake.signal();
}

void EpollEngine::stop() {
  post([this] { x_stopped = true; });
}

void EpollEngine::run() {
  x_stopped = false;
  x_running = true;
  x_thread = std::this_thread::get_id();
  while (!x_stopped) {
    run_posted();
    if (x_stopped) break;
    wait();
    fire_timers();
    x_removed.clear();
  }
  x_removed.clear();
  x_thread = std::thread::id();
  x_running = false;
}

// The alarm stays as it is when it comes too early, or for nothing: a wake-up then, once, instead
// of a timer that each wait starts and ends.
void EpollEngine::set_alarm() {
  if (x_timers.empty()) return;
  const auto next = std::ranges::min(x_timers, {}, [](const auto& timer) { return timer->at; })->at;
  if (next >= x_alarm_at) return;
  x_alarm_at = next;
  const auto since_start = next.time_since_epoch();  // of CLOCK_MONOTONIC
  itimerspec alarm{};
  alarm.it_value.tv_sec = std::chrono::duration_cast<std::chrono::seconds>(since_start).count();
  alarm.it_value.tv_nsec = (since_start % std::chrono::seconds(1)).count();
  LETHE_ASSERT(::timerfd_settime(x_alarm.get(), TFD_TIMER_ABSTIME, &alarm, nullptr) == 0);
}

void EpollEngine::wait() {
  set_alarm();
  std::array<epoll_event, kEventsMax> events;
  const int count = ::epoll_wait(x_epoll.get(), events.data(), kEventsMax, has_posted() ? 0 : -1);
  LETHE_ASSERT(count >= 0 || errno == EINTR);
  for (int i = 0; i < count; ++i) {
    auto* const descriptor = static_cast<Descriptor*>(events[static_cast<size_t>(i)].data.ptr);
    // SAFETY: null is x_wake or x_alarm; every other one is alive: a removed one waits in
    // x_removed.
    if (descriptor != nullptr && descriptor->live) descriptor->callback();
  }
}

void EpollEngine::fire_timers() {
  if (x_timers.empty() && x_alarm_at == kNever) return;
  const Clock::time_point now = Clock::now();
  if (x_alarm_at <= now) x_alarm_at = kNever;
  for (const auto& timer : x_timers)
    if (timer->at <= now) x_due.push_back(timer);
  if (x_due.empty()) return;
  std::ranges::sort(x_due, {}, [](const auto& timer) { return timer->at; });
  for (const auto& timer : x_due) {
    // One before it may have cancelled it, or set it anew.
    if (!timer->set || timer->at > now) continue;
    timer->set = false;
    std::erase(x_timers, timer);
    timer->callback();
  }
  x_due.clear();
}

// What was posted so far, in order; what these post is for the next turn, and what comes after a
// stop() for the next run().
void EpollEngine::run_posted() {
  {
    MutexLock lock(x_mutex);
    x_now.swap(x_posted);
  }
  size_t ran = 0;
  while (ran < x_now.size() && !x_stopped) std::exchange(x_now[ran++], nullptr)();
  if (ran < x_now.size()) {
    MutexLock lock(x_mutex);
    const auto rest = x_now.begin() + static_cast<std::ptrdiff_t>(ran);
    x_posted.insert(x_posted.begin(), std::make_move_iterator(rest),
                    std::make_move_iterator(x_now.end()));
  }
  x_now.clear();
}

}  // namespace

std::unique_ptr<EventLoop::Impl> make_epoll_engine() { return std::make_unique<EpollEngine>(); }

}  // namespace lethe
