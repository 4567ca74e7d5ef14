// The names under which the guests of a `lethe check` run: check-SLOT-GUEST, the same each time, so
// that `lethe console check-1-boot` and what reads logs know them. SLOT is the lowest number that
// no other `lethe check` of this user has: it is held by a lock, which a crash gives up too. So two
// checks on a host are never in each other's way, not even those of one config.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"
#include "vmm/run_dir.h"

namespace lethe {

inline constexpr int kCheckSlotsMax = 1000;

class RunNames {
 public:
  // Errors (kHost): the run-time root can't be written, or all slots are taken.
  [[nodiscard]] static Result<RunNames> create(
      const RunDirRoots& roots = RunDirRoots::of_this_process());

  // The guest's run-time name: valid_vm_name(), and different for each guest's name. What no VM's
  // name may have becomes '-', and then a hash of the whole makes it unique.
  [[nodiscard]] std::string of(std::string_view guest) const;

 private:
  RunNames(int slot, UniqueFd lock) : x_slot(slot), x_lock(std::move(lock)) {}
  int x_slot;
  UniqueFd x_lock;
};

// FNV-1a, 64 bit, its bits mixed: the same on every machine, for names and shards.
[[nodiscard]] uint64_t stable_hash(std::string_view text);

}  // namespace lethe
