// Which guests a `lethe check` runs: collected from files and directories, sorted, sharded.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "vmm/check/exec_steps.h"
#include "vmm/check/pattern.h"
#include "vmm/config.h"

namespace lethe {

struct Guest {
  std::string name;  // the config file's stem; unique in a run
  std::string config_file;
  CheckConfig check;
  LinePatterns patterns;
  ExecPlan exec;          // of check.exec
  uint64_t memory_bytes;  // what it may take of the host
};

struct GuestList {
  std::vector<Guest> guests;       // sorted by name
  std::vector<std::string> notes;  // what was passed over, a line each
};

// Reads the configs. A directory stands for its *.toml files (not those further down); those of
// them that have no [check] table are passed over with a note. Each error is one line in `errors`:
// unreadable, wrong, without [check], two of one name, nothing at all.
[[nodiscard]] GuestList collect_guests(std::span<const std::string> inputs,
                                       std::vector<std::string>& errors);

// The guests of part `shard` (from 1) of `shards`. Which part a guest is in, its name alone says
// (by stable_hash()): a config that is added or removed moves no other one.
[[nodiscard]] std::vector<Guest> take_shard(std::vector<Guest> guests, uint32_t shard,
                                            uint32_t shards);

// What of check.needs this host lacks, in words; empty if nothing.
[[nodiscard]] std::string missing_needs(const CheckConfig& check);

}  // namespace lethe
