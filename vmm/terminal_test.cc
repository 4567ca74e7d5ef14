#include "vmm/terminal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <vector>

#include "base/unique_fd.h"

namespace lethe {
namespace {

std::string feed(EscapeKeys& keys, std::string_view typed) {
  return keys.feed({reinterpret_cast<const uint8_t*>(typed.data()), typed.size()});
}

TEST(EscapeKeys, passes_what_is_typed_and_takes_commands_out) {
  std::vector<EscapeKeys::Command> commands;
  EscapeKeys keys([&](EscapeKeys::Command command) { commands.push_back(command); });
  EXPECT_EQ(feed(keys, "ls\r\1h\1p\1x!"), "ls\r!");
  EXPECT_EQ(commands, (std::vector{EscapeKeys::Command::kHelp, EscapeKeys::Command::kPowerButton,
                                   EscapeKeys::Command::kQuit}));
}

TEST(EscapeKeys, sends_the_escape_key_itself_when_typed_twice_also_across_reads) {
  EscapeKeys keys([](EscapeKeys::Command) { FAIL(); });
  EXPECT_EQ(feed(keys, "a\1"), "a");
  EXPECT_EQ(feed(keys, "\1b"), "\1b");
  EXPECT_EQ(feed(keys, "\1e"), "\1e");  // no command: both go to the guest
}

struct Terminal {
  UniqueFd master{::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)};
  UniqueFd slave;
  Terminal() {
    EXPECT_EQ(::grantpt(master.get()), 0);
    EXPECT_EQ(::unlockpt(master.get()), 0);
    slave.reset(::open(::ptsname(master.get()), O_RDWR | O_NOCTTY | O_CLOEXEC));
  }
  bool raw() const {
    termios mode{};
    EXPECT_EQ(::tcgetattr(slave.get(), &mode), 0);
    return (mode.c_lflag & (ICANON | ECHO | ISIG)) == 0;
  }
};

TEST(RawTerminal, restores_the_mode_when_it_goes) {
  Terminal terminal;
  ASSERT_FALSE(terminal.raw());
  {
    auto raw = RawTerminal::enter(terminal.slave.get());
    ASSERT_TRUE(raw) << raw.error().text;
    EXPECT_TRUE(terminal.raw());
  }
  EXPECT_FALSE(terminal.raw());
}

TEST(RawTerminal, restores_the_mode_when_the_process_aborts_or_exits) {
  for (const bool aborts : {true, false}) {
    Terminal terminal;
    const pid_t child = ::fork();
    if (child == 0) {
      auto raw = RawTerminal::enter(terminal.slave.get());
      if (!raw || !terminal.raw()) ::_exit(1);
      if (aborts) ::kill(::getpid(), SIGQUIT);
      static RawTerminal* kept = raw->release();  // exit() finds it still in raw mode
      (void)kept;
      ::exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(WIFSIGNALED(status), aborts);
    if (!aborts) {
      EXPECT_EQ(WEXITSTATUS(status), 0);
    }
    EXPECT_FALSE(terminal.raw());
  }
}

TEST(RawTerminal, refuses_what_is_no_terminal) {
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const auto raw = RawTerminal::enter(null.get());
  ASSERT_FALSE(raw);
  EXPECT_NE(raw.error().text.find("terminal"), std::string::npos);
}

}  // namespace
}  // namespace lethe
