#include "vmm/check/memory_budget.h"

#include <algorithm>

#include "memory/pressure.h"

namespace lethe {
namespace {

constexpr uint64_t kProcessBytes = 32 * kMiB;  // code, threads, devices' buffers
constexpr uint64_t kPixelBytes = 4;

}  // namespace

uint64_t memory_of(const VmConfig& config) {
  uint64_t bytes = kProcessBytes;
  if (config.memory.backing != MemoryBacking::kHugetlb) bytes += config.memory.size_bytes;
  // What it gave back and takes again can be in the pool and with the guest at a time.
  const MemoryPolicy policy = config.memory.policy;
  if (config.balloon.enabled && (policy == MemoryPolicy::kAuto || policy == MemoryPolicy::kPool))
    bytes += config.memory.pool_bytes_max();
  if (config.gui.enabled)
    bytes += kPixelBytes * config.gui.width * config.gui.height * config.gui.screens;
  return bytes;
}

uint64_t available_memory() {
  const MemoryState state = Pressure().read();
  // A host that does not say is not held against anyone.
  const uint64_t host = state.host_total == 0 ? UINT64_MAX : state.host_available;
  return state.limit == 0 ? host : std::min(host, state.headroom);
}

}  // namespace lethe
