// The small parts of base: result, assert, descriptors, locks.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "base/assert.h"
#include "base/event_fd.h"
#include "base/mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {
namespace {

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }
UniqueFd some_fd() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

Result<int> half(int value) {
  if (value % 2 != 0) return config_error("{} is odd", value);
  return value / 2;
}
Result<int> quarter(int value) {
  LETHE_TRY_ASSIGN(const int once, half(value));
  LETHE_TRY(half(once));
  return half(once);
}
Result<std::unique_ptr<int>> boxed_half(int value) {
  LETHE_TRY_ASSIGN(auto box, half(value).map([](int h) { return std::make_unique<int>(h); }));
  return Result<std::unique_ptr<int>>(std::move(box));
}

TEST(Result, try_returns_the_error_with_its_class_and_text) {
  EXPECT_EQ(quarter(12).value(), 3);
  const auto result = quarter(6);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().kind, ErrorClass::kConfig);
  EXPECT_EQ(result.error().text, "3 is odd");
}

TEST(Result, try_assign_moves_move_only_values) { EXPECT_EQ(*boxed_half(8).value(), 4); }

TEST(Result, host_error_has_the_host_class) {
  const Result<> result = host_error("{}: {}", "disk.img", errno_text(ENOENT));
  EXPECT_EQ(result.error().kind, ErrorClass::kHost);
  EXPECT_EQ(result.error().text, "disk.img: No such file or directory");
}

TEST(AssertDeathTest, failed_assertion_names_itself_and_aborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  LETHE_ASSERT(1 + 1 == 2);
  EXPECT_DEATH(LETHE_ASSERT(1 + 1 == 3), "lethe: bug: .*base_test.cc:[0-9]+: .*1 \\+ 1 == 3");
}

TEST(UniqueFd, closes_once_when_destroyed) {
  int number = -1;
  {
    const UniqueFd fd = some_fd();
    ASSERT_TRUE(fd.valid());
    number = fd.get();
    EXPECT_TRUE(is_open(number));
  }
  EXPECT_FALSE(is_open(number));
}

TEST(UniqueFd, move_hands_the_descriptor_over) {
  UniqueFd first = some_fd();
  const int number = first.get();
  UniqueFd second(std::move(first));
  EXPECT_FALSE(first.valid());  // NOLINT(bugprone-use-after-move): that is what is tested
  UniqueFd third = some_fd();
  const int replaced = third.get();
  third = std::move(second);
  EXPECT_EQ(third.get(), number);
  EXPECT_TRUE(is_open(number));
  EXPECT_FALSE(is_open(replaced));
}

TEST(UniqueFd, assigning_to_itself_keeps_it_open) {
  UniqueFd fd = some_fd();
  UniqueFd& same = fd;
  fd = std::move(same);
  EXPECT_TRUE(fd.valid() && is_open(fd.get()));
}

TEST(UniqueFd, released_descriptor_stays_open) {
  UniqueFd fd = some_fd();
  const int number = fd.release();
  fd.reset();
  EXPECT_TRUE(is_open(number));
  ::close(number);
}

TEST(EventFd, take_returns_the_count_of_signals_and_clears_it) {
  const EventFd event = EventFd::create().value();
  EXPECT_EQ(event.take(), 0U);
  event.signal();
  event.signal();
  EXPECT_EQ(event.take(), 2U);
  EXPECT_EQ(event.take(), 0U);
}

TEST(EventFd, signal_at_the_counters_maximum_does_not_block) {
  const EventFd event = EventFd::create().value();
  ASSERT_EQ(::eventfd_write(event.fd(), UINT64_MAX - 1), 0);
  event.signal();
  EXPECT_EQ(event.take(), UINT64_MAX - 1);
}

TEST(EventFd, is_closed_on_exec) {
  const EventFd event = EventFd::create().value();
  EXPECT_EQ(::fcntl(event.fd(), F_GETFD), FD_CLOEXEC);
}

TEST(CondVar, wait_until_returns_false_at_its_deadline) {
  Mutex mutex;
  CondVar condition;
  const auto begin = std::chrono::steady_clock::now();
  const auto deadline = begin + std::chrono::milliseconds(20);
  MutexLock lock(mutex);
  while (condition.wait_until(mutex, deadline)) {
  }
  EXPECT_GE(std::chrono::steady_clock::now(), deadline);
}

TEST(CondVar, notified_waiter_goes_on_with_the_lock_held) {
  Mutex mutex;
  CondVar condition;
  int stage = 0;
  std::thread other([&] {
    MutexLock lock(mutex);
    while (stage != 1) condition.wait(mutex);
    stage = 2;
    condition.notify_all();
  });
  {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    MutexLock lock(mutex);
    stage = 1;
    condition.notify_all();
    bool in_time = true;
    while (stage != 2 && in_time) in_time = condition.wait_until(mutex, deadline);
    EXPECT_EQ(stage, 2);
  }
  other.join();
}

}  // namespace
}  // namespace lethe
