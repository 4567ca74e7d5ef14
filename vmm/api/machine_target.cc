#include "vmm/api/machine_target.h"

#include <unistd.h>

namespace lethe {
namespace {

constexpr const char* kNoBalloon = "this VM has no balloon: balloon.enabled = false in its config";

const char* policy_word(MemoryPolicy policy) {
  switch (policy) {
    case MemoryPolicy::kAuto:
      return "auto";
    case MemoryPolicy::kPool:
      return "pool";
    case MemoryPolicy::kDiscard:
      return "discard";
    case MemoryPolicy::kLazy:
      break;
  }
  return "lazy";
}

double uptime_s(const RunHistory& history) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - history.started).count();
}

}  // namespace

VmState MachineTarget::state() {
  return {.name = x_config.name,
          .state = x_stopping ? "stopping" : "running",
          .pid = static_cast<uint64_t>(::getpid()),
          .uptime_s = uptime_s(x_history),
          .boots = x_history.boots,
          .cpus = x_config.cpus,
          .memory_bytes = x_config.memory.size_bytes};
}

void MachineTarget::report_metrics(MetricSink& sink) {
  sink.gauge("lethe_vm_uptime_seconds", "Since `lethe run` began.", uptime_s(x_history));
  sink.counter("lethe_vm_boots_total", "How often the guest was started.", x_history.boots);
  x_machine.report_metrics(sink);
}

MemorySettings MachineTarget::memory() {
  return {.policy = policy_word(x_config.memory.policy),
          .policy_now = "none",
          .automatic = x_config.memory.automatic,
          .pool_max = x_config.memory.pool_bytes_max()};
}

Result<> MachineTarget::set_memory(const MemoryChange&) { return host_error("{}", kNoBalloon); }

Result<> MachineTarget::reclaim(uint64_t, std::function<void(uint64_t)>,
                                std::function<void(ReclaimEnd)>) {
  return host_error("{}", kNoBalloon);
}

}  // namespace lethe
