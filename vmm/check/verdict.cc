#include "vmm/check/verdict.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>

#include <cstring>

#include "vmm/config_schema.h"
#include "vmm/run.h"

namespace lethe {
namespace {

constexpr size_t kTailBytesMax = 4096;

std::string describe_exit_code(int code) {
  switch (code) {
    case kExitPoweredOff:
      return "the guest powered off";
    case kExitHostError:
      return "the host failed it";
    case kExitUsage:
      return "the config was refused";
    case kExitRebooted:
      return "the guest rebooted";
    case kExitPanicked:
      return "the guest panicked";
    case kExitTripleFault:
      return "the guest triple-faulted";
    case kExitForced:
      return "it was ended by force";
    case kExitNoKvm:
      return "there is no KVM";
    case kExitDebugMax:
      return "debug-exit with a value above 62";
    default:
      break;
  }
  if (code > kExitDebugBase - 1 && code < kExitDebugMax)
    return fmt::format("debug-exit {}", code - kExitDebugBase);
  return fmt::format("exit code {}", code);
}

// Whether lethe itself failed: by a signal that `lethe check` ends no guest with, or as it says.
bool lethe_failed(int status) {
  if (WIFSIGNALED(status)) return WTERMSIG(status) != SIGKILL && WTERMSIG(status) != SIGTERM;
  return WEXITSTATUS(status) == kExitHostError;
}

// lethe's own last message, which says why it ended, as ": text".
std::string last_message(const AttemptRecord& record) {
  std::string line = tail_of(record.messages, 1);
  while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
  return line.empty() ? "" : ": " + printable(line);
}

}  // namespace

std::string describe_end(int wait_status) {
  if (WIFSIGNALED(wait_status))
    return fmt::format("lethe was killed by signal {} ({})", WTERMSIG(wait_status),
                       ::strsignal(WTERMSIG(wait_status)));
  return describe_exit_code(WEXITSTATUS(wait_status));
}

std::vector<std::string> judge_attempt(const Guest& guest, const AttemptRecord& record) {
  if (!record.start_error.empty()) return {record.start_error};
  if (record.interrupted) return {"interrupted"};
  std::vector<std::string> reasons;
  if (record.flooded) {
    reasons.push_back(fmt::format("printed more than {}", format_size(kConsoleBytesMax)));
  } else if (record.timed_out) {
    reasons.push_back(fmt::format("timeout: still running at its deadline of {:.1f} s",
                                  std::chrono::duration<double>(record.deadline).count()));
  } else if (record.ended_for_steps) {
    if (lethe_failed(record.wait_status))
      reasons.push_back(fmt::format("expected to be ended with the steps, but {}{}",
                                    describe_end(record.wait_status), last_message(record)));
  } else {
    const int status = record.wait_status;
    const int expected = expected_exit_code(guest.check);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (guest.check.ends_with_screen() || guest.check.ends_with_exec()) {
      // Its steps may have been through just before.
      if (!record.step_errors.empty() || lethe_failed(status))
        reasons.push_back(fmt::format("expected to be ended after the last step {}, but {}{}",
                                      guest.check.ends_with_screen() ? "on its screen" : "in it",
                                      describe_end(status), last_message(record)));
    } else if (code != expected) {
      reasons.push_back(fmt::format("expected {}, but {}{}", guest.check.exit, describe_end(status),
                                    last_message(record)));
    }
    // The guest did not run, or not to its end: what its console lacks says nothing more.
    if (code == kExitHostError || code == kExitUsage || code == kExitNoKvm) return reasons;
  }
  reasons.insert(reasons.end(), record.step_errors.begin(), record.step_errors.end());
  for (std::string& wrong : guest.patterns.judge(record.console))
    reasons.push_back(std::move(wrong));
  return reasons;
}

std::string tail_of(std::string_view text, size_t lines_max) {
  while (text.ends_with('\n') || text.ends_with('\r')) text.remove_suffix(1);
  if (text.size() > kTailBytesMax) text.remove_prefix(text.size() - kTailBytesMax);
  size_t start = text.size();
  for (size_t lines = 0; start > 0; --start)
    if (text[start - 1] == '\n' && ++lines == lines_max) break;
  text.remove_prefix(start);
  return text.empty() ? std::string() : std::string(text) + "\n";
}

}  // namespace lethe
