// A machine's memory policy, put together: the loop, what it acts on, and the caches it purges.
#pragma once

#include <optional>

#include "memory/scrub_pool_cache.h"
#include "vmm/memory_policy.h"
#include "vmm/memory_return.h"

namespace lethe {

// All memory of this process that the host holds, in bytes (proc(5), statm); 0 if it can't be read.
[[nodiscard]] uint64_t process_resident_bytes();

// Threading: the main thread's. Made after `memory`, destroyed before it; nothing of it runs while
// the loop does not.
class MachineMemory final : private MemoryPolicyTarget {
 public:
  MachineMemory(const VmConfig& config, EventLoop& loop, MemoryReturn& memory);

  [[nodiscard]] MemoryPolicyLoop& policy() { return x_policy; }
  [[nodiscard]] const MemoryPolicyLoop& policy() const { return x_policy; }
  // For devices with caches of their own.
  [[nodiscard]] Shrinker& shrinker() { return x_shrinker; }

 private:
  [[nodiscard]] bool policy_is_auto() const override {
    return x_memory.wanted_policy() == MemoryPolicy::kAuto;
  }
  [[nodiscard]] ReturnPolicy policy_now() const override { return x_memory.policy(); }
  [[nodiscard]] uint64_t pool_max() const override { return x_memory.pool_max(); }
  [[nodiscard]] uint64_t pool_bytes() const override;
  [[nodiscard]] uint64_t resident() const override;
  void apply(ReturnPolicy policy, uint64_t pool_bytes_max) override;
  [[nodiscard]] BalloonControl& balloon() override { return x_memory.balloon(); }

  const uint64_t x_guest_size;
  MemoryReturn& x_memory;
  Shrinker x_shrinker;
  std::optional<ScrubPoolCache> x_pool_cache;
  Shrinker::Registration x_pool_registration;
  MemoryPolicyLoop x_policy;
};

}  // namespace lethe
