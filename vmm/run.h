// `lethe run`: one VM from start to end, in this process.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "base/result.h"
#include "vmm/config.h"
#include "vmm/detach.h"

namespace lethe {

class Snapshot;

// What `lethe run` exits with: by these, callers tell how the guest ended.
inline constexpr int kExitPoweredOff = 0;
inline constexpr int kExitHostError = 1;
inline constexpr int kExitUsage = 2;  // bad config or command line
inline constexpr int kExitRebooted = 3;
inline constexpr int kExitPanicked = 4;
inline constexpr int kExitTripleFault = 5;
inline constexpr int kExitForced = 6;  // stop timeout, second SIGTERM, the escape key's quit
inline constexpr int kExitNoKvm = 7;
inline constexpr int kExitDebugBase = 64;  // plus the debug-exit value
inline constexpr int kExitDebugMax = 127;  // for every value above 62

[[nodiscard]] constexpr int debug_exit_code(uint32_t value) {
  return value > 62 ? kExitDebugMax : kExitDebugBase + static_cast<int>(value);
}

[[nodiscard]] constexpr int exit_code_of(ErrorClass kind) {
  switch (kind) {
    case ErrorClass::kConfig:
      return kExitUsage;
    case ErrorClass::kKvm:
      return kExitNoKvm;
    case ErrorClass::kHost:
      break;
  }
  return kExitHostError;
}

struct RunOptions {
  std::string config_file;  // for messages
  // Leave the terminal alone: the guest's console goes to standard output, standard input is not
  // read, no escape keys, no raw mode.
  bool non_interactive = false;
  // The first boot goes on where this stopped; null: it is a boot. The config is the snapshot's.
  Snapshot* snapshot = nullptr;
};

// Runs the VM to its end and returns the exit code. Errors have been written to stderr, one line.
// Main thread; called once a process. `start` is sent when the guest runs and can be reached; a
// detached VM prints its console to the hub (vmm/console_host.h) and the log only.
[[nodiscard]] int run_machine(const VmConfig& config, const RunOptions& options,
                              StartSignal start = {});

}  // namespace lethe
