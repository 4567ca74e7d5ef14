// `lethe check`: boots guests from configs with a [check] table, each as a child process
// `lethe run CONFIG --non-interactive`, and judges how they ended, what they printed, what was on
// their screens, and what commands in them did.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lethe {

struct CheckOptions {
  std::vector<std::string> inputs;  // config files; directories stand for their *.toml
  std::string junit_file;           // empty: no report
  bool json = false;                // results as JSON to stdout, what else is said to stderr
  std::string out_dir;  // console logs, NAME.log, of retries NAME.attempt-N.log, directories of
                        // pictures, NAME.screen, and what [[check.exec]] leaves, NAME.exec.log and
                        // NAME.artifacts; empty: none
  uint32_t jobs = 1;    // guests at a time, 1 to 256
  std::optional<uint64_t> memory_bytes;  // of the guests at a time; none: what the host has
  uint32_t shard = 1;                    // run the shard-th part
  uint32_t shards = 1;                   // of so many
  uint32_t retries = 0;                  // runs more of a guest that failed, 0 to 10
  double timeout_scale = 1.0;            // deadlines are multiplied by it, 0.01 to 1000
  std::string program;                   // what runs a guest; empty: this program
  std::string shot_program;  // what looks at screens; empty: lethe-shot, where it is found
};

inline constexpr int kExitInterrupted = 130;

// Runs them all and reports. Returns 0: none failed; 1: one did; kExitUsage: bad config, nothing
// was run; kExitInterrupted. Main thread.
[[nodiscard]] int run_checks(const CheckOptions& options);

}  // namespace lethe
