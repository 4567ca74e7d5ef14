// Snapshots of a machine: docs/snapshot.md.
//
// Threading: the main thread, but for SavedMachine::commit().
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/state.h"
#include "vmm/config.h"
#include "vmm/snapshot/memory_file.h"
#include "vmm/snapshot/snapshot_dir.h"

namespace lethe {

class Machine;

struct SnapshotReport {
  uint64_t memory_bytes = 0;  // of guest memory that holds something
  uint64_t disk_bytes = 0;    // what the snapshot takes on the disk
  double paused_ms = 0;       // how long the guest stood still
};

// A machine that was saved, but is not safe on the disk yet and has no name there. Destroyed
// without commit() it leaves nothing.
class SavedMachine {
 public:
  SavedMachine(SnapshotWriter writer, const SnapshotReport& report)
      : x_writer(std::move(writer)), x_report(report) {}
  // Takes as long as the disk does; any thread. The error is one line.
  [[nodiscard]] Result<SnapshotReport> commit();

 private:
  SnapshotWriter x_writer;
  SnapshotReport x_report;
};

// Saves the machine, of whose config `config` is, on the way to become the directory `dir`
// (absolute, new). The machine is paused for it, and runs on afterwards if it ran before and
// `stay_paused` is not set; also when this fails: the error says why in one line.
[[nodiscard]] Result<SavedMachine> save_machine(Machine& machine, const VmConfig& config,
                                                const std::string& dir, bool stay_paused);

struct RestoreOptions {
  std::string name;            // run under this name; empty: the config's
  bool verify = false;         // check all of the memory before the guest runs
  bool changed_disks = false;  // go on although a disk is not as it was
};

// A snapshot that was read, and is now to become a machine.
class Snapshot {
 public:
  // Reads and checks it, but for the memory's content (memory_loader.h). Errors: kConfig: it is no
  // good, or does not fit this lethe; kHost: it can't be read.
  [[nodiscard]] static Result<std::unique_ptr<Snapshot>> open(const std::string& dir,
                                                              const RestoreOptions& options);

  [[nodiscard]] const VmConfig& config() const { return x_config; }
  [[nodiscard]] const std::string& dir() const { return x_dir; }
  [[nodiscard]] bool verify() const { return x_verify; }
  // These once each, by the machine.
  [[nodiscard]] MemoryTable take_table() { return std::move(x_table); }
  [[nodiscard]] UniqueFd take_memory() { return std::move(x_files.memory); }
  // What Machine::save() wrote is next.
  [[nodiscard]] StateReader& machine() { return *x_reader; }

 private:
  Snapshot(std::string dir, SnapshotFiles files, bool verify)
      : x_dir(std::move(dir)), x_files(std::move(files)), x_verify(verify) {}
  [[nodiscard]] Result<> read(const RestoreOptions& options);
  std::string x_dir;
  SnapshotFiles x_files;
  bool x_verify;
  VmConfig x_config;
  MemoryTable x_table;
  std::optional<StateReader> x_reader;
};

// The parts of `state` before the machine; apart for tests and the fuzzer.
void save_config(const VmConfig& config, StateWriter& to);
[[nodiscard]] Result<VmConfig> restore_config(const RestoreOptions& options, StateReader& from);

}  // namespace lethe
