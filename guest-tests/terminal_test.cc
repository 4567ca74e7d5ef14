// What `lethe run` does with a real terminal (label kvm): raw mode while the guest runs, given back
// on every way out; the escape keys. Guests: those of baremetal/configs/signals.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "guest-tests/pty_process.h"

namespace {

std::filesystem::path program_folder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

// `lethe run` of a guest that waits for its power button, on a pseudo-terminal of its own.
class TerminalRun : public PtyProcess {
 public:
  explicit TerminalRun(const std::string& config)
      : PtyProcess(
            {program_folder() / "lethe", "run",
             program_folder().parent_path() / "guest-tests/baremetal/signals" / (config + ".toml"),
             // A name of its own: another run of the tests may be under way on this host.
             "--name", "terminal-" + std::to_string(getpid())}) {
    wait_for("waiting for the power button");
  }
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
