#include "vmm/memory_return.h"

#include "vmm/config_schema.h"

namespace lethe {
namespace {

std::unique_ptr<ScrubPool> make_pool(const VmConfig& config, const GuestMemory& memory) {
  // Only private anonymous pages can be moved.
  if (config.memory.backing != MemoryBacking::kAnonymous) return nullptr;
  ScrubPoolOptions options;
  options.scrub_at_map = config.memory.scrub == ScrubTime::kMap;
  options.forget_max = std::chrono::milliseconds(config.memory.forget_ms_max);
  options.huge_pages = config.memory.thp;
  return ScrubPool::create(memory, options);
}

ReturnPipelineOptions pipeline_options(const VmConfig& config, const GuestMemory& memory,
                                       ScrubPool* pool, PendingMemory* pending) {
  ReturnPipelineOptions options;
  options.isolated_max = config.memory.isolated_max;
  options.taker = pool;
  options.pending = pending;
  if (pool != nullptr)
    options.poison_changed = [pool, pending, &memory](uint32_t value) {
      // The pool is to know every page that the guest has; and there is one userfaultfd at a time.
      if (value != 0 && pending != nullptr)
        for (const MemoryRegion& region : memory.regions())
          if (!region.removable) pending->fetch(region.host, region.size);
      pool->set_poison(value);
    };
  return options;
}

}  // namespace

MemoryReturn::MemoryReturn(const VmConfig& config, const GuestMemory& memory,
                           PendingMemory* pending)
    : x_config(config),
      x_pending(pending),
      x_wanted(config.memory.policy),
      x_pool_max(config.memory.pool_bytes_max()),
      x_pool(make_pool(config, memory)),
      x_pipeline(memory, pipeline_options(config, memory, x_pool.get(), pending)),
      x_device(BalloonDevice::create(memory, x_pipeline,
                                     {.deflate_on_oom = config.balloon.deflate_on_oom,
                                      .statistics = config.balloon.statistics,
                                      .free_page_hint = config.balloon.free_page_hinting,
                                      .free_page_reporting = config.balloon.free_page_reporting})),
      x_control(x_device.get()) {
  apply(policy_for(x_wanted), x_pool_max);
}

ReturnPolicy MemoryReturn::policy_for(MemoryPolicy wanted) const {
  switch (wanted) {
    case MemoryPolicy::kAuto:
    case MemoryPolicy::kPool:
      return x_pool && x_pool_max > 0 ? ReturnPolicy::kPool : ReturnPolicy::kDiscard;
    case MemoryPolicy::kLazy:
      return ReturnPolicy::kLazy;
    case MemoryPolicy::kDiscard:
      break;
  }
  return ReturnPolicy::kDiscard;
}

Result<> MemoryReturn::check_policy(MemoryPolicy policy) const {
  if (policy == MemoryPolicy::kLazy && x_config.memory.forget)
    return config_error(
        "the policy \"lazy\" leaves returned memory readable: it needs memory.forget = false in "
        "the config");
  if (policy == MemoryPolicy::kPool && !x_pool)
    return config_error("the policy \"pool\" needs memory.backing = \"anonymous\" in the config");
  return {};
}

Result<> MemoryReturn::check_pool_max(uint64_t bytes) const {
  if (bytes <= x_config.memory.size_bytes) return {};
  return config_error("pool_max {} is more than the guest has: it must be at most {}",
                      format_size(bytes), format_size(x_config.memory.size_bytes));
}

void MemoryReturn::want(MemoryPolicy policy, uint64_t pool_max) {
  x_wanted = policy;
  x_pool_max = pool_max / kChunkBytes * kChunkBytes;
  apply(policy_for(policy), x_pool_max);
}

void MemoryReturn::apply(ReturnPolicy policy, uint64_t pool_bytes_max) {
  // A range has one userfaultfd: the pool's comes when the snapshot's has gone.
  if (policy == ReturnPolicy::kPool && x_pending != nullptr && !x_pending->complete())
    policy = ReturnPolicy::kDiscard;
  x_pipeline.set_policy(policy);
  // Where the pool is not used it is emptied, and faults go to the kernel again.
  if (x_pool) x_pool->set_bytes_max(policy == ReturnPolicy::kPool ? pool_bytes_max : 0);
}

void MemoryReturn::report_metrics(MetricSink& sink) const {
  x_control->report_metrics(sink);
  x_pipeline.report_metrics(sink);
  if (x_pool) x_pool->report_metrics(sink);
}

}  // namespace lethe
