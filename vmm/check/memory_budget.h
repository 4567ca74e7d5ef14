// How many guests fit into the host's memory at a time.
#pragma once

#include <cstdint>
#include <string>

#include "vmm/config.h"

namespace lethe {

// The most that a guest takes of the host's memory: its RAM, unless that is in huge pages, which
// were set aside before; its scrub pool; its screens; and the process's own.
[[nodiscard]] uint64_t memory_of(const VmConfig& config);

// What the host can spare now: MemAvailable, or less where a memory cgroup has less left.
[[nodiscard]] uint64_t available_memory();

// Which guests may run side by side: in sum they stay within the budget. Guests take memory as they
// touch it, so what is left now says nothing of those that run; their whole sizes count. One that
// is too large by itself runs alone.
// Threading: one thread.
class MemoryBudget {
 public:
  explicit MemoryBudget(uint64_t bytes) : x_bytes(bytes) {}
  [[nodiscard]] bool fits(uint64_t bytes) const {
    return x_taken == 0 || (bytes <= x_bytes && x_taken <= x_bytes - bytes);
  }
  [[nodiscard]] bool too_large(uint64_t bytes) const { return bytes > x_bytes; }
  void take(uint64_t bytes) { x_taken += bytes; }
  void give_back(uint64_t bytes) { x_taken -= bytes; }
  [[nodiscard]] uint64_t bytes() const { return x_bytes; }

 private:
  const uint64_t x_bytes;
  uint64_t x_taken = 0;
};

}  // namespace lethe
