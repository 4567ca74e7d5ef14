// What `lethe run` does with a real terminal (label kvm): raw mode while the guest runs, given back
// on every way out; the escape keys. Guests: those of baremetal/configs/signals.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kDeadline{30'000};

std::filesystem::path program_folder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

// `lethe run` of a guest that waits for its power button, on a pseudo-terminal of its own.
class TerminalRun {
 public:
  explicit TerminalRun(const std::string& config) {
    const std::string lethe = program_folder() / "lethe";
    const std::string path =
        program_folder().parent_path() / "guest-tests/baremetal/signals" / (config + ".toml");
    int slave = -1;
    EXPECT_EQ(openpty(&x_master, &slave, nullptr, nullptr, nullptr), 0);
    // The master stays open with the slave, so that the mode can be read after the VM's end.
    x_slave = slave;
    EXPECT_EQ(tcgetattr(slave, &x_mode_before), 0);
    x_pid = fork();
    if (x_pid == 0) {
      close(x_master);
      setsid();
      for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(slave, fd);
      // A name of its own: another run of the tests may be under way on this host.
      const std::string name = "terminal-" + std::to_string(getpid());
      execl(lethe.c_str(), "lethe", "run", path.c_str(), "--name", name.c_str(), nullptr);
      _exit(125);
    }
    wait_for("waiting for the power button");
  }
  ~TerminalRun() {
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

  void wait_for(const std::string& text) {
    const auto end = steady_clock::now() + kDeadline;
    while (x_seen.find(text) == std::string::npos && steady_clock::now() < end) {
      pollfd waiting{x_master, POLLIN, 0};
      char chunk[512];
      if (poll(&waiting, 1, 100) <= 0) continue;
      const ssize_t got = read(x_master, chunk, sizeof chunk);
      if (got <= 0) break;
      x_seen.append(chunk, static_cast<size_t>(got));
    }
    EXPECT_NE(x_seen.find(text), std::string::npos) << "on the terminal: " << x_seen;
  }

  [[nodiscard]] bool raw() const {
    termios mode{};
    EXPECT_EQ(tcgetattr(x_slave, &mode), 0);
    return (mode.c_lflag & (ICANON | ECHO | ISIG)) == 0;
  }
  [[nodiscard]] bool restored() const {
    termios mode{};
    EXPECT_EQ(tcgetattr(x_slave, &mode), 0);
    return mode.c_lflag == x_mode_before.c_lflag && mode.c_iflag == x_mode_before.c_iflag &&
           mode.c_oflag == x_mode_before.c_oflag && mode.c_cflag == x_mode_before.c_cflag;
  }

  // The wait status; fails the test after the deadline.
  int wait_for_end() {
    const auto end = steady_clock::now() + kDeadline;
    int status = 0;
    while (waitpid(x_pid, &status, WNOHANG) == 0) {
      if (steady_clock::now() > end) {
        ADD_FAILURE() << "the VM did not end; on the terminal: " << x_seen;
        return -1;
      }
      usleep(10'000);
    }
    x_pid = -1;
    return status;
  }

 private:
  int x_master = -1;
  int x_slave = -1;
  pid_t x_pid = -1;
  termios x_mode_before{};
  std::string x_seen;
};

TEST(Terminal, is_raw_while_the_guest_runs_and_ctrl_a_x_quits) {
  TerminalRun run("power-button");
  EXPECT_TRUE(run.raw());
  run.type("\1h");
  run.wait_for("press the power button");
  run.type("\1x");
  const int status = run.wait_for_end();
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 6);
  EXPECT_TRUE(run.restored());
}

TEST(Terminal, is_restored_when_the_guest_powers_off_after_ctrl_a_p) {
  TerminalRun run("power-button");
  run.type("\1p");
  const int status = run.wait_for_end();
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(run.restored());
}

TEST(Terminal, is_restored_when_signals_end_the_vm_by_force) {
  TerminalRun run("ignore-button");
  run.send(SIGTERM);
  usleep(200'000);
  EXPECT_TRUE(run.raw()) << "the first SIGTERM only presses the button";
  run.send(SIGHUP);
  const int status = run.wait_for_end();
  EXPECT_EQ(WEXITSTATUS(status), 6);
  EXPECT_TRUE(run.restored());
}

TEST(Terminal, is_restored_when_lethe_crashes) {
  for (const int signal : {SIGSEGV, SIGABRT}) {
    TerminalRun run("power-button");
    EXPECT_TRUE(run.raw());
    run.send(signal);
    EXPECT_TRUE(WIFSIGNALED(run.wait_for_end()));
    EXPECT_TRUE(run.restored()) << "after signal " << signal;
  }
}

}  // namespace
