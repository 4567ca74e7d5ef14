// One run of a guest: a child process, its output, its deadline. All on one event loop's thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

inline constexpr size_t kConsoleBytesMax = 16 << 20;   // a guest that prints more is stopped
inline constexpr size_t kMessagesBytesMax = 64 << 10;  // the rest of them is dropped

struct AttemptSpec {
  std::vector<std::string> command;  // the program and its arguments
  std::chrono::nanoseconds deadline{};
  std::chrono::nanoseconds grace{};        // from SIGTERM to SIGKILL
  std::string log_file;                    // gets the output as it comes; empty: none
  std::vector<std::string> environment{};  // NAME=VALUE, besides our own
  // Gets what comes on standard error, as it comes; optional.
  std::function<void(std::string_view)> on_messages{};
};

struct AttemptRecord {
  std::string start_error;              // the child could not be started: nothing else is set
  int wait_status = 0;                  // as waitpid() gives it
  std::chrono::nanoseconds deadline{};  // as it was set
  bool timed_out = false;
  bool flooded = false;  // stopped at kConsoleBytesMax
  bool interrupted = false;
  // Of the steps on its screen and in it (vmm/check/guest_run.h): what went wrong, a line each.
  std::vector<std::string> step_errors;
  std::string step_output;       // what a command that failed printed last
  bool ended_for_steps = false;  // ended early: the steps were through, or one failed
  std::string console;           // standard output
  std::string messages;          // standard error
  std::chrono::nanoseconds duration{};
};

class Attempt {
 public:
  // `done` is called once, from the loop, when the child has ended; it may destroy the Attempt.
  Attempt(EventLoop& loop, AttemptSpec spec, std::function<void(AttemptRecord)> done);
  // Kills the child and all it started, if they still run.
  ~Attempt();
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  // Ends the child early (an interruption): SIGTERM, then SIGKILL after the grace time; called
  // again: SIGKILL now.
  void interrupt();
  // Ends the child, as a deadline does: SIGTERM, then SIGKILL after the grace time.
  void stop_child();

 private:
  struct Stream {
    UniqueFd fd;
    std::unique_ptr<EventLoop::Watch> watch;
    std::string* text = nullptr;
    size_t bytes_max = 0;
  };

  [[nodiscard]] Result<> start();
  [[nodiscard]] Result<> spawn(UniqueFd output, UniqueFd messages);
  void drain(Stream& stream);
  void keep(Stream& stream, std::string_view chunk);
  void signal_group(int signal) const;
  void child_ended();
  void finish();

  EventLoop& x_loop;
  AttemptSpec x_spec;
  std::function<void(AttemptRecord)> x_done;
  AttemptRecord x_record;
  std::chrono::steady_clock::time_point x_started_at;
  pid_t x_pid = -1;  // until it is reaped
  bool x_stopping = false;
  UniqueFd x_pidfd;
  UniqueFd x_log;
  Stream x_console;
  Stream x_messages;
  std::unique_ptr<EventLoop::Watch> x_exit_watch;
  std::unique_ptr<EventLoop::Timer> x_deadline_timer;
  std::unique_ptr<EventLoop::Timer> x_kill_timer;
  std::shared_ptr<bool> x_alive = std::make_shared<bool>(true);  // for posted work
};

}  // namespace lethe
