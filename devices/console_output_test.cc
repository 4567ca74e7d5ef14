#include "devices/console_output.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/socket.h>
#include <termios.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "devices/virtio/loop_test_util.h"

namespace lethe {
namespace {

std::span<const uint8_t> bytes_of(std::string_view text) {
  // SAFETY: bytes of the text, as they are.
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

struct ConsoleOutputTest : testing::Test {
  ConsoleOutputTest() { ::signal(SIGPIPE, SIG_IGN); }
  ~ConsoleOutputTest() override { std::filesystem::remove(log_path); }
  void open(int fd, const std::string& log = "") {
    output = std::make_unique<OnLoop<ConsoleOutput>>(
        [&](EventLoop& loop) { return ConsoleOutput::create(loop, fd, log).value(); });
  }
  std::string log_content() {
    std::ifstream file(log_path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Writes all of it, waiting for room where there is none; false if that takes too long.
  bool write_all(std::string_view text) {
    return eventually([&] {
      text.remove_prefix((*output)->write(bytes_of(text)));
      return text.empty();
    });
  }
  static std::string read_exactly(int fd, size_t size) {
    std::string text;
    std::vector<char> buffer(65536);
    pollfd poll_fd{.fd = fd, .events = POLLIN, .revents = 0};
    while (text.size() < size && ::poll(&poll_fd, 1, 10'000) > 0) {
      const ssize_t count = ::read(fd, buffer.data(), std::min(buffer.size(), size - text.size()));
      if (count <= 0) break;
      text.append(buffer.data(), static_cast<size_t>(count));
    }
    return text;
  }
  std::string log_path = testing::TempDir() + "lethe-console-" + std::to_string(::getpid());
  std::unique_ptr<OnLoop<ConsoleOutput>> output;
};

std::string pattern(size_t size) {
  std::string text(size, ' ');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>('A' + (i * 7 + i / 251) % 53);
  return text;
}

TEST_F(ConsoleOutputTest, a_blocked_pipe_fills_the_buffer_then_refuses_then_loses_nothing) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  const UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  open(writer.get(), log_path);
  std::atomic<int> room{0};
  output->run([&] { (*output)->add_room_listener([&] { ++room; }); });

  const std::string text = pattern(ConsoleOutput::kBufferMax * 4);
  std::string_view rest = text;
  // The pipe is full once two writes in a row, with a flush between them, are refused whole.
  int refused = 0;
  ASSERT_TRUE(eventually([&] {
    const size_t taken = (*output)->write(bytes_of(rest));
    rest.remove_prefix(taken);
    refused = taken == 0 ? refused + 1 : 0;
    output->run([] {});
    return refused == 2;
  }));
  EXPECT_FALSE(rest.empty());
  EXPECT_EQ(::fcntl(writer.get(), F_GETFL) & O_NONBLOCK, 0) << "others hold that description too";

  std::thread feeder([&] { EXPECT_TRUE(write_all(rest)); });
  EXPECT_TRUE(read_exactly(reader.get(), text.size()) == text);
  feeder.join();
  output->run([] {});
  EXPECT_GT(room, 0);
  EXPECT_TRUE(log_content() == text);
  EXPECT_EQ((*output)->counters().dropped, 0u);
}

TEST_F(ConsoleOutputTest, a_paused_terminal_never_blocks_the_loop) {
  int master_fd = -1;
  int slave_fd = -1;
  ASSERT_EQ(::openpty(&master_fd, &slave_fd, nullptr, nullptr, nullptr), 0);
  const UniqueFd master(master_fd);
  const UniqueFd slave(slave_fd);
  termios raw{};
  ::tcgetattr(slave.get(), &raw);
  ::cfmakeraw(&raw);
  ::tcsetattr(slave.get(), TCSANOW, &raw);
  ASSERT_EQ(::tcflow(slave.get(), TCOOFF), 0);
  open(slave.get());
  const std::string text = pattern(30'000);
  EXPECT_EQ((*output)->write(bytes_of(text)), text.size());
  output->run([] {});  // comes back although the terminal takes nothing
  ASSERT_EQ(::tcflow(slave.get(), TCOON), 0);
  EXPECT_TRUE(read_exactly(master.get(), text.size()) == text);
}

// A serial console's bytes come one by one, each with time for the loop to act on it.
TEST_F(ConsoleOutputTest, gathers_single_bytes_and_leaves_none_behind) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
  const UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  open(writer.get());
  const std::string text = pattern(300);
  for (const char& byte : text) {
    ASSERT_EQ((*output)->write(bytes_of({&byte, 1})), 1u);
    output->run([] {});
  }
  std::string received;
  size_t writes = 0;  // each is a packet
  char packet[512];
  pollfd poll_fd{.fd = reader.get(), .events = POLLIN, .revents = 0};
  while (received.size() < text.size() && ::poll(&poll_fd, 1, 10'000) > 0) {
    const ssize_t count = ::recv(reader.get(), packet, sizeof packet, 0);
    ASSERT_GT(count, 0);
    received.append(packet, static_cast<size_t>(count));
    ++writes;
  }
  EXPECT_EQ(received, text);
  EXPECT_LT(writes, text.size() / 2);
}

TEST_F(ConsoleOutputTest, writes_sockets_and_files) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  const UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  open(writer.get());
  const std::string text = pattern(500'000);
  std::thread feeder([&] { EXPECT_TRUE(write_all(text)); });
  EXPECT_TRUE(read_exactly(reader.get(), text.size()) == text);
  feeder.join();
  output.reset();

  const UniqueFd file(::open(log_path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  open(file.get());
  EXPECT_TRUE(write_all(text));
  EXPECT_TRUE(eventually([&] { return (*output)->counters().written == text.size(); }));
  EXPECT_TRUE(log_content() == text);
}

TEST_F(ConsoleOutputTest, a_reader_that_goes_away_does_not_hold_the_guest_up) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  const UniqueFd writer(fds[1]);
  open(writer.get(), log_path);
  ::close(fds[0]);
  const std::string text = pattern(200'000);
  EXPECT_TRUE(write_all(text));
  EXPECT_TRUE(eventually([&] { return (*output)->counters().dropped == text.size(); }));
  EXPECT_TRUE(log_content() == text) << "the log has it all the same";
}

TEST_F(ConsoleOutputTest, without_a_descriptor_only_the_log_gets_it) {
  open(-1, log_path);
  EXPECT_TRUE(write_all("boot\n"));
  output->run([] {});
  EXPECT_EQ(log_content(), "boot\n");
  EXPECT_EQ((*output)->counters().dropped, 0u);
}

TEST_F(ConsoleOutputTest, a_log_that_gets_too_long_keeps_its_last_lines) {
  const auto append = [this] {
    output.reset();
    output = std::make_unique<OnLoop<ConsoleOutput>>([&](EventLoop& loop) {
      return ConsoleOutput::create(loop, -1, log_path, ConsoleLog::kAppend, 4000).value();
    });
  };
  append();
  int lines = 0;
  size_t size_max = 0;
  const auto print = [&](int count) {
    for (const int end = lines + count; lines < end; ++lines)
      EXPECT_TRUE(write_all(fmt::format("line {:4}\n", lines)));
    output->run([this] { (*output)->finish(std::chrono::seconds(10)); });
    size_max = std::max(size_max, log_content().size());
  };
  for (int i = 0; i < 100; ++i) print(13);
  EXPECT_LE(size_max, 4000u);
  EXPECT_GT(size_max, 3500u);
  // What an earlier boot has left counts, too.
  for (int i = 0; i < 100; ++i) {
    append();
    print(13);
  }
  EXPECT_LE(size_max, 4000u);
  EXPECT_TRUE(log_content().ends_with("line 2598\nline 2599\n")) << log_content();
  EXPECT_EQ((*output)->counters().log_dropped, 0u);
}

TEST_F(ConsoleOutputTest, a_full_disk_ends_the_log_and_nothing_else) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  const UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  open(writer.get(), "/dev/full");
  EXPECT_TRUE(write_all("hello"));
  EXPECT_EQ(read_exactly(reader.get(), 5), "hello");
  EXPECT_EQ((*output)->counters().log_dropped, 5u);
}

TEST_F(ConsoleOutputTest, finish_writes_the_rest_within_its_patience) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  const UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  EventLoop loop;  // never runs
  auto quick = ConsoleOutput::create(loop, writer.get(), log_path).value();
  EXPECT_EQ(quick->write(bytes_of("last words")), 10u);
  quick->finish(std::chrono::seconds(10));
  EXPECT_EQ(read_exactly(reader.get(), 10), "last words");

  const std::string text = pattern(ConsoleOutput::kBufferMax);
  EXPECT_EQ(quick->write(bytes_of(text)), text.size());
  quick->finish(std::chrono::seconds(10));  // fills the pipe
  EXPECT_EQ(quick->write(bytes_of(text)), text.size());
  const auto start = std::chrono::steady_clock::now();
  quick->finish(std::chrono::milliseconds(50));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(quick->counters().dropped, text.size());
  EXPECT_TRUE(log_content() == "last words" + text + text);
}

TEST_F(ConsoleOutputTest, a_log_that_can_not_be_opened_is_named) {
  EventLoop loop;
  const auto result = ConsoleOutput::create(loop, -1, "/nonexistent/console.log");
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().text.find("/nonexistent/console.log"), std::string::npos);
}

}  // namespace
}  // namespace lethe
