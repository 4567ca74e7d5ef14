// A snapshot on disk: a directory with the files `state` and `memory`.
//
// `state` is a header (magic, version, length), sections as StateWriter writes them, and the XXH3
// checksum of all before it. `memory`: memory_file.h.
//
// A snapshot is made under another name beside its own, DIR.unfinished-XXXXXX, synced, and renamed
// when all of it is there: what has the final name is whole. What a killed process leaves behind
// has the other name, and goes when a snapshot of the same name is made next: who is at work holds
// a lock on the directory, which ends with the process.
//
// Threading: any one thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/state.h"
#include "base/unique_fd.h"

namespace lethe {

inline constexpr uint32_t kSnapshotVersion = 1;
inline constexpr uint64_t kStateBytesMax = uint64_t{1} << 30;       // of the file
inline constexpr uint64_t kSectionsBytesMax = kStateBytesMax - 28;  // without header and checksum

class SnapshotWriter {
 public:
  // Makes the temporary directory, and removes those that killed processes left. `dir`: an absolute
  // path at which nothing is yet. Error (kHost): one line that names it.
  [[nodiscard]] static Result<SnapshotWriter> create(const std::string& dir);
  SnapshotWriter(SnapshotWriter&& other) noexcept;
  SnapshotWriter& operator=(SnapshotWriter&&) = delete;
  // Removes the temporary directory, unless commit() has succeeded.
  ~SnapshotWriter();

  // Empty, for write_memory().
  [[nodiscard]] int memory_fd() const { return x_memory.get(); }
  // Header, sections, checksum. Of sections that are too long (kSectionsBytesMax) nothing is
  // written.
  [[nodiscard]] Result<> write_state(StateWriter sections);
  // Syncs both files and gives the directory its name. Fails if something has that name by now.
  [[nodiscard]] Result<> commit();
  // Bytes that the files take on the disk.
  [[nodiscard]] uint64_t disk_bytes() const;
  [[nodiscard]] const std::string& dir() const { return x_dir; }

 private:
  explicit SnapshotWriter(std::string dir) : x_dir(std::move(dir)) {}
  std::string x_dir;
  std::string x_temporary;  // empty: nothing to remove
  UniqueFd x_directory;
  UniqueFd x_state;
  UniqueFd x_memory;
};

// A snapshot that was found whole as far as that is known without reading its memory.
struct SnapshotFiles {
  std::vector<uint8_t> state;  // the file
  UniqueFd memory;
  uint64_t memory_bytes = 0;  // its size
  [[nodiscard]] std::span<const uint8_t> sections() const;
};

// Errors: kConfig: no snapshot, another version, truncated, altered; kHost: it can't be read.
[[nodiscard]] Result<SnapshotFiles> open_snapshot(const std::string& dir);

// The file `state` by itself: its checks, for tests and the fuzzer. Error without the file's name.
[[nodiscard]] Result<> check_state_file(std::span<const uint8_t> file);
[[nodiscard]] std::vector<uint8_t> make_state_file(std::span<const uint8_t> sections);

}  // namespace lethe
