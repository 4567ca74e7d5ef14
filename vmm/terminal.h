// The terminal that a VM's console is attached to: raw mode, given back on every way out, and the
// escape keys.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"

namespace lethe {

// Puts the terminal on `fd` into raw mode for as long as it lives. The old mode is restored by the
// destructor, by exit(), and by the signals that end a process (SIGKILL excepted); a stopped
// process that goes on (SIGCONT) is put back into raw mode by reapply(). One at a time.
class RawTerminal {
 public:
  // Fails when `fd` is no terminal, or refuses. `farewell`, a constant, is written to it just
  // before the mode is restored: to leave an alternate screen.
  [[nodiscard]] static Result<std::unique_ptr<RawTerminal>> enter(int fd,
                                                                  const char* farewell = "");
  ~RawTerminal();
  void reapply();
  // Gives it back before a process ends without destructors. Any thread; harmless if there is none.
  static void give_back();

 private:
  RawTerminal() = default;
};

// Splits what is typed into the guest's bytes and commands: Ctrl-A, then x (quit), p (power
// button), h or ? (help), or Ctrl-A again (send one). Anything else after Ctrl-A goes to the guest,
// the Ctrl-A with it.
class EscapeKeys {
 public:
  enum class Command : uint8_t { kQuit, kPowerButton, kHelp };

  explicit EscapeKeys(std::function<void(Command)> on_command)
      : x_on_command(std::move(on_command)) {}
  // What of `typed` the guest shall get; commands are called on the way.
  [[nodiscard]] std::string feed(std::span<const uint8_t> typed);

  static const char* help();

 private:
  std::function<void(Command)> x_on_command;
  bool x_escaped = false;
};

}  // namespace lethe
