// A command that runs in the guest: its process, and the pipes to it.
#pragma once

#include <sys/types.h>

#include <string>

#include <tl/expected.hpp>

#include "base/unique_fd.h"
#include "guest-tests/linux/exec/request.h"

namespace lethe::exec {

class Command {
 public:
  // Starts it, in a session (and so a process group) of its own. The error is one line.
  [[nodiscard]] static tl::expected<Command, std::string> start(const Request& request);
  Command(Command&& other) noexcept = default;
  Command& operator=(Command&&) = delete;
  // Kills what still runs of the process group, if the command was not reaped.
  ~Command();

  void kill_group() const;
  // Its wait status; called when `pidfd` is readable, once.
  [[nodiscard]] int reap();

  [[nodiscard]] pid_t pid() const { return x_pid.number; }
  UniqueFd pidfd;  // readable when it has ended
  UniqueFd input;  // invalid: it reads /dev/null. Neither blocks
  UniqueFd output;
  UniqueFd errors;

 private:
  struct Pid {
    pid_t number = -1;  // until it is reaped
    Pid() = default;
    Pid(Pid&& other) noexcept : number(std::exchange(other.number, -1)) {}
  };
  Command() = default;
  Pid x_pid;
};

}  // namespace lethe::exec
