#include "vmm/machine_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>

namespace lethe {
namespace {

MemoryPolicyOptions policy_options(const VmConfig& config) {
  MemoryPolicyOptions options;
  options.guest_size = config.memory.size_bytes;
  options.floor = config.memory.floor_bytes;
  options.weight = config.memory.weight;
  options.automatic = config.memory.automatic;
  return options;
}

}  // namespace

uint64_t process_resident_bytes() {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen("/proc/self/statm", "re"),
                                                   std::fclose);
  unsigned long long size = 0;
  unsigned long long resident = 0;
  if (!file || std::fscanf(file.get(), "%llu %llu", &size, &resident) != 2) return 0;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

MachineMemory::MachineMemory(const VmConfig& config, EventLoop& loop, MemoryReturn& memory)
    : x_guest_size(config.memory.size_bytes),
      x_memory(memory),
      x_policy(loop, policy_options(config), *this, x_shrinker) {
  if (ScrubPool* const pool = memory.pool()) {
    x_pool_cache.emplace(*pool);
    x_pool_registration = x_shrinker.add(*x_pool_cache);
  }
}

uint64_t MachineMemory::pool_bytes() const {
  ScrubPool* const pool = x_memory.pool();
  if (pool == nullptr) return 0;
  const ScrubPool::Stats stats = pool->stats();
  return stats.clean_bytes + stats.dirty_bytes + stats.scrubbing_bytes;
}

// Close enough to the guest's, and at no cost, where a look at the guest's own memory costs up to a
// millisecond a GiB.
uint64_t MachineMemory::resident() const {
  const uint64_t bytes = process_resident_bytes();
  return std::min(x_guest_size, bytes - std::min<uint64_t>(bytes, pool_bytes()));
}

void MachineMemory::apply(ReturnPolicy policy, uint64_t pool_bytes_max) {
  const bool pool = x_memory.pool() != nullptr && pool_bytes_max >= kChunkBytes;
  if (policy == ReturnPolicy::kPool && !pool) policy = ReturnPolicy::kDiscard;
  x_memory.apply(policy, pool_bytes_max);
}

}  // namespace lethe
