// For tests: a program on a pseudo-terminal of its own. Every wait has a deadline.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <vector>

class PtyProcess {
 public:
  // `words`: the program's path and its arguments. 10 lines of `columns` characters.
  explicit PtyProcess(std::vector<std::string> words, unsigned short columns = 100) {
    const winsize size{.ws_row = 10, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    EXPECT_EQ(openpty(&x_master, &x_slave, nullptr, nullptr, &size), 0);
    EXPECT_EQ(tcgetattr(x_slave, &x_before), 0);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    x_pid = fork();
    if (x_pid != 0) return;
    close(x_master);
    setsid();
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(x_slave, fd);
    execv(argv[0], argv.data());
    _exit(125);
  }
  PtyProcess(const PtyProcess&) = delete;
  PtyProcess& operator=(const PtyProcess&) = delete;
  ~PtyProcess() {
    if (x_pid > 0) {
      kill(x_pid, SIGKILL);
      waitpid(x_pid, nullptr, 0);
    }
    close(x_master);
    close(x_slave);
  }

  void type(const std::string& keys) const {
    EXPECT_EQ(write(x_master, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }
  void send(int signal) const { EXPECT_EQ(kill(x_pid, signal), 0); }
  void resize(unsigned short columns) const {
    const winsize size{.ws_row = 10, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    EXPECT_EQ(ioctl(x_slave, TIOCSWINSZ, &size), 0);
    send(SIGWINCH);
  }

  // What the program has written since it began, or since forget().
  [[nodiscard]] const std::string& seen() const { return x_seen; }
  void forget() { x_seen.clear(); }
  // Until the program has written `text`: false, and the test fails, if it does not.
  bool wait_for(const std::string& text) {
    const auto end = Clock::now() + kDeadline;
    while (x_seen.find(text) == std::string::npos && Clock::now() < end) read_some();
    const bool found = x_seen.find(text) != std::string::npos;
    EXPECT_TRUE(found) << "no '" << text << "' on the terminal: " << x_seen;
    return found;
  }
  // The wait status; afterwards all output has been seen. After the deadline the test fails.
  int wait_for_end() {
    const auto end = Clock::now() + kDeadline;
    int status = 0;
    while (waitpid(x_pid, &status, WNOHANG) == 0) {
      if (Clock::now() > end) {
        ADD_FAILURE() << "the program did not end; on the terminal: " << x_seen;
        return -1;
      }
      read_some();
    }
    x_pid = -1;
    while (read_some()) {
    }
    return status;
  }

  [[nodiscard]] bool raw() const { return (mode().c_lflag & (ICANON | ECHO | ISIG)) == 0; }
  // Whether the terminal's mode is what it was.
  [[nodiscard]] bool restored() const {
    const termios now = mode();
    return now.c_lflag == x_before.c_lflag && now.c_iflag == x_before.c_iflag &&
           now.c_oflag == x_before.c_oflag && now.c_cflag == x_before.c_cflag;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kDeadline{30'000};

  [[nodiscard]] termios mode() const {
    termios now{};
    EXPECT_EQ(tcgetattr(x_slave, &now), 0);
    return now;
  }
  // False: nothing came for 50 ms.
  bool read_some() {
    pollfd waiting{x_master, POLLIN, 0};
    char chunk[4096];
    if (poll(&waiting, 1, 50) <= 0) return false;
    const ssize_t got = read(x_master, chunk, sizeof chunk);
    if (got > 0) x_seen.append(chunk, static_cast<size_t>(got));
    return got > 0;
  }

  int x_master = -1;
  int x_slave = -1;  // stays open, so that the mode can be read after the program's end
  pid_t x_pid = -1;
  termios x_before{};
  std::string x_seen;
};
