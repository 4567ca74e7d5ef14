#include "base/event_loop.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/event_fd.h"
#include "base/unique_fd.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A loop that ends by itself, with a failure, if a test forgets to stop it.
class EventLoopTest : public testing::TestWithParam<EventLoop::Engine> {
 protected:
  void run() {
    guard_ = loop_.make_timer([this] {
      ADD_FAILURE() << "the loop was not stopped in time";
      loop_.stop();
    });
    guard_->start(milliseconds(10'000));
    loop_.run();
    guard_.reset();
  }
  // Lets what is ready now be dispatched, then ends the run.
  void run_what_is_ready() {
    auto end = loop_.make_timer([this] { loop_.stop(); });
    end->start(milliseconds(30));
    run();
  }

  EventLoop loop_{GetParam()};
  std::unique_ptr<EventLoop::Timer> guard_;
};
INSTANTIATE_TEST_SUITE_P(, EventLoopTest,
                         testing::Values(EventLoop::Engine::kAsio, EventLoop::Engine::kEpoll),
                         [](const auto& engine) {
                           return engine.param == EventLoop::Engine::kAsio ? "asio" : "epoll";
                         });

TEST_P(EventLoopTest, watch_calls_each_time_the_descriptor_is_readable) {
  const EventFd event = EventFd::create().value();
  int calls = 0;
  const auto watch = loop_.watch_readable(event.fd(), [&] {
    EXPECT_EQ(event.take(), 1U);
    if (++calls == 3)
      loop_.stop();
    else
      event.signal();
  });
  ASSERT_TRUE(watch.has_value()) << watch.error().text;
  event.signal();
  run();
  EXPECT_EQ(calls, 3);
}

TEST_P(EventLoopTest, watch_is_level_triggered) {
  const EventFd event = EventFd::create().value();
  int calls = 0;
  const auto watch = loop_.watch_readable(event.fd(), [&] {
    if (++calls == 3) loop_.stop();  // never reads
  });
  ASSERT_TRUE(watch.has_value());
  event.signal();
  run();
  EXPECT_GE(calls, 3);
}

TEST_P(EventLoopTest, destroyed_watch_is_not_called_and_leaves_the_descriptor_open) {
  const EventFd event = EventFd::create().value();
  int calls = 0;
  auto watch = loop_.watch_readable(event.fd(), [&] { ++calls; });
  ASSERT_TRUE(watch.has_value());
  event.signal();
  watch->reset();
  run_what_is_ready();
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(event.take(), 1U);
}

TEST_P(EventLoopTest, callback_may_destroy_its_own_watch) {
  const EventFd event = EventFd::create().value();
  std::unique_ptr<EventLoop::Watch> watch;
  int calls = 0;
  watch = loop_
              .watch_readable(event.fd(),
                              [&] {
                                ++calls;
                                watch.reset();
                              })
              .value();
  event.signal();
  run_what_is_ready();
  EXPECT_EQ(calls, 1);
}

TEST_P(EventLoopTest, one_descriptor_can_be_watched_in_both_directions) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd read_end(fds[0]);
  const UniqueFd write_end(fds[1]);
  std::vector<std::string> order;
  std::unique_ptr<EventLoop::Watch> writable;
  writable = loop_
                 .watch_writable(write_end.get(),
                                 [&] {
                                   order.emplace_back("writable");
                                   writable.reset();
                                   EXPECT_EQ(::write(write_end.get(), "x", 1), 1);
                                 })
                 .value();
  const auto readable = loop_.watch_readable(read_end.get(), [&] {
    order.emplace_back("readable");
    loop_.stop();
  });
  ASSERT_TRUE(readable.has_value());
  run();
  EXPECT_EQ(order, std::vector<std::string>({"writable", "readable"}));
}

// Out-of-band data of a TCP connection is what poll(2) calls priority.
TEST_P(EventLoopTest, priority_watch_is_called_for_priority_and_not_for_ordinary_data) {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  // SAFETY: the sockets API's own way to pass an address.
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::bind(listener.get(), generic, size), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), generic, &size), 0);
  const UniqueFd sender(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::connect(sender.get(), generic, size), 0);
  const UniqueFd receiver(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(receiver.valid());
  int calls = 0;
  const auto watch = loop_.watch_priority(receiver.get(), [&] {
    ++calls;
    char urgent = 0;
    EXPECT_EQ(::recv(receiver.get(), &urgent, 1, MSG_OOB), 1);
    EXPECT_EQ(urgent, '!');
    loop_.stop();
  });
  ASSERT_TRUE(watch.has_value()) << watch.error().text;
  ASSERT_EQ(::send(sender.get(), "x", 1, 0), 1);
  run_what_is_ready();
  EXPECT_EQ(calls, 0);
  ASSERT_EQ(::send(sender.get(), "!", 1, MSG_OOB), 1);
  run();
  EXPECT_EQ(calls, 1);
}

TEST_P(EventLoopTest, event_watch_is_called_for_each_write_though_nobody_reads) {
  const EventFd event = EventFd::create().value();
  int calls = 0;
  const auto watch = loop_.watch_event(event.fd(), [&] {
    if (++calls == 3)
      loop_.stop();
    else
      event.signal();
  });
  ASSERT_TRUE(watch.has_value()) << watch.error().text;
  event.signal();
  run();
  EXPECT_EQ(calls, 3);
  run_what_is_ready();
  EXPECT_EQ(calls, 3);  // the last signal() was one event
}

TEST_P(EventLoopTest, event_watch_sees_what_was_signalled_before_it) {
  const EventFd event = EventFd::create().value();
  event.signal();
  const auto watch = loop_.watch_event(event.fd(), [&] { loop_.stop(); });
  ASSERT_TRUE(watch.has_value()) << watch.error().text;
  run();
}

TEST_P(EventLoopTest, event_watch_loses_no_write_of_another_thread) {
  const EventFd event = EventFd::create().value();
  std::atomic<int> written{0};
  int seen = 0;
  const auto watch = loop_.watch_event(event.fd(), [&] {
    seen = written.load();
    if (seen == 20'000) loop_.stop();
  });
  ASSERT_TRUE(watch.has_value()) << watch.error().text;
  std::thread writer([&] {
    for (int i = 0; i < 20'000; ++i) {
      ++written;
      event.signal();
    }
  });
  run();
  writer.join();
  EXPECT_EQ(seen, 20'000);
}

// All of these are ready in one wake-up; the first callback ends the others' registrations.
TEST_P(EventLoopTest, callback_may_destroy_other_watches_and_timers_that_are_due) {
  std::vector<EventFd> events;
  std::vector<std::unique_ptr<EventLoop::Watch>> watches;
  std::vector<std::unique_ptr<EventLoop::Timer>> timers;
  int calls = 0;
  int fired = 0;
  for (int i = 0; i < 8; ++i) {
    events.push_back(EventFd::create().value());
    events.back().signal();
    auto watch = loop_.watch_event(events.back().fd(), [&] {
      ++calls;
      watches.clear();
    });
    ASSERT_TRUE(watch.has_value()) << watch.error().text;
    watches.push_back(std::move(*watch));
    timers.push_back(loop_.make_timer([&] {
      ++fired;
      timers.clear();
    }));
    timers.back()->start(milliseconds(1));
  }
  run_what_is_ready();
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(fired, 1);
}

TEST_P(EventLoopTest, timers_fire_in_the_order_of_their_times) {
  std::vector<int> order;
  std::vector<std::unique_ptr<EventLoop::Timer>> timers;
  for (const int at : {3, 1, 2}) {
    timers.push_back(loop_.make_timer([&order, at] { order.push_back(at); }));
    timers.back()->start(milliseconds(at));
  }
  ::usleep(5000);  // all are due when the loop looks
  run_what_is_ready();
  EXPECT_EQ(order, std::vector<int>({1, 2, 3}));
}

TEST_P(EventLoopTest, work_posted_by_work_runs_in_order_and_lets_descriptors_in_between) {
  const EventFd event = EventFd::create().value();
  const auto watch = loop_.watch_event(event.fd(), [&] { loop_.stop(); });
  ASSERT_TRUE(watch.has_value()) << watch.error().text;
  event.signal();
  std::function<void()> again = [&] { loop_.post(again); };
  loop_.post(again);  // never ends by itself
  run();
}

// A loop that never runs again lets go of what was posted to it, and of the watches in there.
TEST_P(EventLoopTest, destroyed_loop_destroys_work_that_holds_a_watch) {
  const EventFd event = EventFd::create().value();
  auto loop = std::make_unique<EventLoop>(GetParam());
  auto watch = loop->watch_event(event.fd(), [] {});
  ASSERT_TRUE(watch.has_value()) << watch.error().text;
  auto held = std::make_shared<std::unique_ptr<EventLoop::Watch>>(std::move(*watch));
  const std::weak_ptr<std::unique_ptr<EventLoop::Watch>> seen = held;
  loop->post([held = std::move(held)] {});
  loop.reset();
  EXPECT_TRUE(seen.expired());
}

TEST_P(EventLoopTest, watch_refuses_a_closed_descriptor) {
  const auto watch = loop_.watch_readable(-1, [] {});
  ASSERT_FALSE(watch.has_value());
  EXPECT_NE(watch.error().text.find("descriptor -1"), std::string::npos) << watch.error().text;
}

TEST_P(EventLoopTest, watch_refuses_what_cannot_be_polled) {
  for (const char* path : {"/proc/self/exe", "/dev/null"}) {
    const UniqueFd file(::open(path, O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(file.valid());
    EXPECT_FALSE(loop_.watch_readable(file.get(), [] {}).has_value()) << path;
  }
}

TEST_P(EventLoopTest, timer_fires_once_and_not_early) {
  int calls = 0;
  const auto begin = steady_clock::now();
  auto timer = loop_.make_timer([&] {
    ++calls;
    EXPECT_GE(steady_clock::now() - begin, milliseconds(20));
  });
  timer->start(milliseconds(20));
  auto end = loop_.make_timer([&] { loop_.stop(); });
  end->start(milliseconds(80));
  run();
  EXPECT_EQ(calls, 1);
}

TEST_P(EventLoopTest, timer_started_again_replaces_the_first_time) {
  std::vector<milliseconds> fired;
  const auto begin = steady_clock::now();
  auto timer = loop_.make_timer([&] {
    fired.push_back(std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin));
  });
  timer->start(milliseconds(5));
  timer->start(milliseconds(40));
  auto end = loop_.make_timer([&] { loop_.stop(); });
  end->start(milliseconds(100));
  run();
  ASSERT_EQ(fired.size(), 1U);
  EXPECT_GE(fired[0], milliseconds(40));
}

TEST_P(EventLoopTest, cancelled_timer_does_not_fire) {
  int calls = 0;
  auto timer = loop_.make_timer([&] { ++calls; });
  timer->start(milliseconds(1));
  timer->cancel();
  run_what_is_ready();
  EXPECT_EQ(calls, 0);
}

TEST_P(EventLoopTest, work_posted_before_stop_has_run) {
  int ran = 0;
  for (int i = 0; i < 100; ++i) loop_.post([&] { ++ran; });
  loop_.stop();
  loop_.post([&] { ran = -1000; });
  run();
  EXPECT_EQ(ran, 100);
}

TEST_P(EventLoopTest, posts_of_other_threads_all_run_on_the_loops_thread) {
  constexpr int kEach = 500;
  int ran = 0;  // no atomic: only the loop's thread touches it
  std::vector<std::thread> posters;
  for (int i = 0; i < 3; ++i)
    posters.emplace_back([&] {
      for (int n = 0; n < kEach; ++n)
        loop_.post([&] {
          if (++ran == 3 * kEach) loop_.stop();
        });
    });
  run();
  for (auto& poster : posters) poster.join();
  EXPECT_EQ(ran, 3 * kEach);
}

// What only Asio's engine has.
class SignalTest : public EventLoopTest {};
INSTANTIATE_TEST_SUITE_P(, SignalTest, testing::Values(EventLoop::Engine::kAsio));

TEST_P(SignalTest, signals_arrive_as_calls) {
  std::vector<int> got;
  auto watch = loop_.watch_signals({SIGUSR1, SIGUSR2}, [&](int signal) {
    got.push_back(signal);
    if (got.size() == 2)
      loop_.stop();
    else
      ::kill(::getpid(), SIGUSR2);
  });
  ASSERT_TRUE(watch.has_value()) << watch.error().text;
  loop_.post([] { ::kill(::getpid(), SIGUSR1); });
  run();
  EXPECT_EQ(got, std::vector<int>({SIGUSR1, SIGUSR2}));
}

TEST_P(SignalTest, watching_a_signal_that_cannot_be_caught_fails) {
  const auto watch = loop_.watch_signals({SIGKILL}, [](int) {});
  EXPECT_FALSE(watch.has_value());
}

// Its waiting handler owns the state that owns the wait: nobody else would end that.
TEST(EventLoop, destroyed_signal_watch_frees_its_callback) {
  auto captured = std::make_shared<int>(0);
  const std::weak_ptr<int> seen = captured;
  {
    EventLoop loop;
    auto watch = loop.watch_signals({SIGUSR1}, [kept = std::move(captured)](int) {});
    ASSERT_TRUE(watch.has_value()) << watch.error().text;
    watch->reset();
  }
  EXPECT_TRUE(seen.expired());
}

TEST(IoThread, runs_work_on_a_thread_of_that_name) {
  IoThread thread("lethe-test-io-with-a-long-name");
  std::optional<std::thread::id> id;
  char name[32] = {};
  thread.run_and_wait([&] {
    id = std::this_thread::get_id();
    pthread_getname_np(pthread_self(), name, sizeof name);
  });
  ASSERT_TRUE(id.has_value());
  EXPECT_NE(*id, std::this_thread::get_id());
  EXPECT_STREQ(name, "lethe-test-io-w");
}

TEST(IoThread, destructor_lets_posted_work_run_and_joins) {
  int ran = 0;
  {
    IoThread thread("lethe-test");
    for (int i = 0; i < 100; ++i) thread.loop().post([&] { ++ran; });
  }
  EXPECT_EQ(ran, 100);
}

}  // namespace
}  // namespace lethe
