// A passt process: user networking without rights (passt(1)).
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "vmm/config.h"

namespace lethe {

// What passt is started with, its socket aside.
[[nodiscard]] std::vector<std::string> passt_arguments(const NetConfig& net);

// Threading: the main thread, which runs `loop`.
//
// The process ends when the other end of its socket is closed (--fd implies --one-off), so it does
// not outlive this process, however that ends. (PR_SET_PDEATHSIG would not do: passt changes its
// user when it is started by root, which clears it.)
class Passt {
 public:
  // Starts it. Errors (kHost): it is not in PATH (the line names the package), or the host is out
  // of processes or descriptors. What it finds wrong itself comes later: its socket closes.
  [[nodiscard]] static Result<std::unique_ptr<Passt>> start(EventLoop& loop, const NetConfig& net);
  // Ends it and waits for that.
  ~Passt();

  // Our end of its socket, once.
  [[nodiscard]] UniqueFd take_socket() { return std::move(x_socket); }
  [[nodiscard]] pid_t pid() const { return x_pid; }
  // Ends it, and says why it had ended if it had: "exit code 1: its last words". `patient`: its
  // socket has closed, so it may be about to end by itself; waits a fifth of a second for that.
  [[nodiscard]] std::string end(bool patient);

 private:
  explicit Passt(UniqueFd socket) : x_socket(std::move(socket)) {}
  Result<> spawn(const std::string& program, const NetConfig& net, int socket);
  void read_messages();

  UniqueFd x_socket;
  pid_t x_pid = -1;
  UniqueFd x_messages;  // its standard error
  std::unique_ptr<EventLoop::Watch> x_watch;
  std::string x_line;        // the beginning of one
  std::string x_last_words;  // the last line that says something
};

}  // namespace lethe
