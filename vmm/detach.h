// `lethe run -d`: the VM as a process of its own, which outlives the command that started it. No
// daemon: the VM is the detached process.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

// Of `messages`: of more, the older half goes.
inline constexpr size_t kDetachedMessagesBytesMax = 1 << 20;

// The VM's end of the line to the command that waits for it. Invalid: nobody waits.
class StartSignal {
 public:
  StartSignal() = default;
  StartSignal(UniqueFd line, std::vector<int> inherited)
      : x_line(std::move(line)), x_inherited(std::move(inherited)) {}
  [[nodiscard]] bool detached() const { return x_line.valid() || x_sent; }
  // The guest runs: tells the service manager, if one waits for it (sd_notify); lets the command
  // end, and sends standard error to `messages` (a path) from here on. Closes what the command
  // has inherited but for `keep`: a shell's lock would be held for the VM's life. Not before now,
  // since the config may name a file as /dev/fd/N. Once; later calls do nothing.
  [[nodiscard]] Result<> send(const std::string& messages, std::span<const int> keep = {});

 private:
  UniqueFd x_line;
  std::vector<int> x_inherited;  // descriptors to close
  bool x_sent = false;
  bool x_told_systemd = false;
};

// Goes on in a child, in a session of its own, with standard input and output at /dev/null and
// standard error as it is until StartSignal::send(). Returns in both: in the child the signal, in
// the parent the exit code of the command: 0 once the VM runs, else what the child ended with; it
// has said why. Before any thread is made.
struct DetachedSide {
  std::optional<int> parent_code;
  StartSignal signal;
};
[[nodiscard]] Result<DetachedSide> detach();

}  // namespace lethe
