#include "base/file_bytes.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "base/log.h"
#include "base/unique_fd.h"

namespace lethe {
namespace {

TEST(WriteAllTest, signals_cut_no_write_short) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const UniqueFd from(ends[0]);
  UniqueFd to(ends[1]);
  struct sigaction before{};
  struct sigaction action{};
  action.sa_handler = [](int) {};  // no SA_RESTART
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  const std::string text(1 << 20, 't');
  std::atomic<bool> wrote = false;
  bool good = false;
  std::thread writer([&] {
    good = write_all(to.get(), text).has_value();
    wrote = true;
    to.reset();
  });
  // The pipe is full soon, and then each signal finds a write that has done nothing yet. Too few of
  // them would show less, and fail nobody.
  for (int i = 0; i < 20; ++i) {
    (void)::pthread_kill(writer.native_handle(), SIGUSR1);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::array<char, 4096> chunk;
  size_t got_all = 0;
  for (;;) {
    if (!wrote) (void)::pthread_kill(writer.native_handle(), SIGUSR1);
    const ssize_t got = ::read(from.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    got_all += static_cast<size_t>(got);
  }
  writer.join();
  (void)::sigaction(SIGUSR1, &before, nullptr);
  EXPECT_TRUE(good);
  EXPECT_EQ(got_all, text.size());
}

TEST(WriteAllTest, says_why_it_failed) {
  const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(write_all(full.get(), "x").error().text, errno_text(ENOSPC));
  EXPECT_TRUE(write_all(full.get(), ""));
}

class CutFileTest : public testing::Test {
 protected:
  CutFileTest() : x_path(testing::TempDir() + "lethe-cut-" + std::to_string(::getpid())) {
    x_file.reset(::open(x_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600));
  }
  ~CutFileTest() override { ::unlink(x_path.c_str()); }
  void write_lines(int count) {
    for (int i = 0; i < count; ++i)
      ASSERT_TRUE(write_all(x_file.get(), fmt::format("line {:4}\n", x_lines++)));
  }
  [[nodiscard]] std::string content() const {
    std::string text(1 << 20, '\0');
    const UniqueFd file(::open(x_path.c_str(), O_RDONLY | O_CLOEXEC));
    const ssize_t got = ::read(file.get(), text.data(), text.size());
    text.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return text;
  }
  const std::string x_path;
  UniqueFd x_file;
  int x_lines = 0;
};

TEST_F(CutFileTest, keeps_the_last_lines_whole) {
  write_lines(100);  // of 10 bytes
  EXPECT_EQ(cut_file(x_file.get(), 1000).value(), 1000U);
  EXPECT_EQ(content().size(), 1000U) << "it is not too long";
  write_lines(1);
  const size_t left = cut_file(x_file.get(), 1000).value();
  EXPECT_LE(left, 500U);
  EXPECT_GT(left, 480U);
  EXPECT_EQ(content().size(), left);
  EXPECT_TRUE(content().starts_with(std::string(kCutMark) + "line ")) << content();
  write_lines(1);
  EXPECT_TRUE(content().ends_with("line   99\nline  100\nline  101\n")) << content();
}

TEST_F(CutFileTest, leaves_what_is_no_regular_file_alone) {
  const UniqueFd null(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(cut_file(null.get(), 100).value(), 0U);
  EXPECT_FALSE(cut_file(-1, 100));
}

TEST_F(CutFileTest, log_lines_keep_a_file_bounded) {
  const UniqueFd before(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
  ASSERT_GE(::dup2(x_file.get(), STDERR_FILENO), 0);
  set_log_bytes_max(4000);
  size_t size_max = 0;
  for (int i = 0; i < 1000; ++i) {
    log_warn(LogModule::kVmm, "number {}", i);
    size_max = std::max(size_max, content().size());
  }
  set_log_bytes_max(0);
  ASSERT_GE(::dup2(before.get(), STDERR_FILENO), 0);
  EXPECT_LE(size_max, 4000U);
  EXPECT_GT(size_max, 3900U);
  EXPECT_TRUE(content().ends_with("lethe: warning: vmm: number 999\n"));
}

}  // namespace
}  // namespace lethe
