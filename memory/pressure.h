// How short of memory the host is, as far as this process is concerned: pressure stall information
// (PSI, Linux Documentation/accounting/psi.rst), the memory cgroup's limits, and what is available.
//
// The process's own cgroup comes first: its memory.pressure, else the system's
// /proc/pressure/memory; the tightest limit of it and the groups above it. Cgroup v2 has
// memory.max, memory.high and memory.current; v1 (limits only, no PSI) memory.limit_in_bytes and
// memory.usage_in_bytes. Page cache that the group can drop at once does not count as used.
//
// Every file may be missing or forbidden. What is missing is left out: a host without PSI has no
// trigger, and its averages read 0.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

// One PSI file: percent of the last 10 s in which some tasks, or all of them, waited for memory.
struct PressureAverages {
  double some_avg10 = 0;
  double full_avg10 = 0;
};
// Nothing if it is no such file's text.
[[nodiscard]] std::optional<PressureAverages> parse_pressure(std::string_view text);

struct MemoryState {
  uint64_t host_total = 0;  // bytes; 0: not known
  uint64_t host_available = 0;
  uint64_t limit = 0;     // of the cgroup that has the least left; 0: there is no limit
  uint64_t headroom = 0;  // what is left of it
  PressureAverages averages;
};

// Threading: one thread.
class Pressure {
 public:
  // Finds the files. `root` is put in front of every path (tests).
  explicit Pressure(std::string root = "");

  [[nodiscard]] MemoryState read() const;

  // Which PSI file the averages are of; empty if there is none.
  [[nodiscard]] const std::string& psi_file() const { return x_psi; }

  // A descriptor that reports POLLPRI when some tasks waited 150 ms of a second (without
  // CAP_SYS_RESOURCE: 300 ms of two, psi.rst), at most once in that time, and POLLERR for good when
  // its cgroup goes away. Of psi_file(), or the system's where that one can't be written. Costs
  // nothing while there is no pressure. The error is one line, and names each file tried.
  [[nodiscard]] Result<UniqueFd> open_trigger() const;

 private:
  struct Group {
    std::string current, max, high, stat;  // paths
    const char* file_cache = nullptr;      // its line in `stat`
  };
  void find_groups();
  void add_groups(const std::string& mount, const std::string& mount_root, std::string path,
                  bool v2);

  const std::string x_root;
  std::string x_psi;
  std::vector<Group> x_groups;  // the process's own, and those above it
};

}  // namespace lethe
