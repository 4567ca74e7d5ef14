// A VM's memory return, put together from its config: scrub pool, return pipeline, balloon.
//
//   guest --balloon's queues--> BalloonDevice --> ReturnPipeline --> ScrubPool, or the host
//
// Threading: made, changed and destroyed on the main thread; the parts have threads of their own.
// It must outlive every thread that touches guest memory (vCPUs, devices): once the pool has taken
// a chunk, a missing page of guest memory is answered by the pool's thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "base/result.h"
#include "devices/virtio/balloon/balloon.h"
#include "memory/return_pipeline.h"
#include "memory/scrub_pool.h"
#include "vmm/config.h"

namespace lethe {

class MemoryReturn {
 public:
  // Costs next to nothing: threads, userfaultfd and arena are made when memory comes back.
  // `pending`: memory is still coming out of a snapshot; null if it is not. Must outlive this.
  MemoryReturn(const VmConfig& config, const GuestMemory& memory, PendingMemory* pending = nullptr);

  // The device, once: for the PCI bus, which owns it from then on and must be gone before this.
  [[nodiscard]] std::unique_ptr<BalloonDevice> take_device() { return std::move(x_device); }

  [[nodiscard]] BalloonControl& balloon() { return *x_control; }
  [[nodiscard]] const BalloonControl& balloon() const { return *x_control; }
  [[nodiscard]] ScrubPool* pool() { return x_pool.get(); }  // null: this memory can't be moved
  [[nodiscard]] ReturnPolicy policy() const { return x_pipeline.policy(); }

  // What the user asked for; apply() does not change it.
  [[nodiscard]] MemoryPolicy wanted_policy() const { return x_wanted; }
  [[nodiscard]] uint64_t pool_max() const { return x_pool_max; }

  // Whether the user may have it so; the error is one line.
  [[nodiscard]] Result<> check_policy(MemoryPolicy policy) const;
  [[nodiscard]] Result<> check_pool_max(uint64_t bytes) const;
  // By the user's word, checked.
  void want(MemoryPolicy policy, uint64_t pool_max);

  // Puts policy and pool size in force: by the user's word, or by the governor's.
  void apply(ReturnPolicy policy, uint64_t pool_bytes_max);

  // All memory has come out of the snapshot: from now on the pool may be used.
  void memory_complete() { apply(policy_for(x_wanted), x_pool_max); }

  void report_metrics(MetricSink& sink) const;

 private:
  [[nodiscard]] ReturnPolicy policy_for(MemoryPolicy wanted) const;

  const VmConfig& x_config;
  PendingMemory* const x_pending;
  MemoryPolicy x_wanted;
  uint64_t x_pool_max;
  // In the order of dependence.
  std::unique_ptr<ScrubPool> x_pool;
  ReturnPipeline x_pipeline;
  std::unique_ptr<BalloonDevice> x_device;
  BalloonControl* const x_control;  // x_device, which the PCI bus owns later
};

}  // namespace lethe
