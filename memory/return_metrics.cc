// What the return pipeline shows of itself.
#include "memory/return_pipeline.h"

namespace lethe {
namespace {

constexpr std::array<const char*, kReturnSources> kSourceNames = {"inflate", "report", "hint"};

}  // namespace

const char* policy_name(ReturnPolicy policy) {
  switch (policy) {
    case ReturnPolicy::kPool:
      return "pool";
    case ReturnPolicy::kDiscard:
      return "discard";
    case ReturnPolicy::kLazy:
      break;
  }
  return "lazy";
}

void ReturnPipeline::report_metrics(MetricSink& sink) const {
  const auto value = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  for (size_t i = 0; i < kReturnSources; ++i) {
    sink.counter("lethe_return_reported_bytes_total", "Bytes that the guest gave back.",
                 value(x_counters.taken[i]), {{"source", kSourceNames[i]}});
    sink.counter("lethe_return_refused_ranges_total",
                 "Ranges outside memory, unaligned, empty or across regions.",
                 value(x_counters.refused[i]), {{"source", kSourceNames[i]}});
  }
  const struct {
    const char* name;
    const char* help;
    const std::atomic<uint64_t>& counter;
  } counters[] = {
      {"lethe_return_ranges_total", "Ranges that the guest gave back.", x_counters.ranges},
      {"lethe_return_merged_ranges_total", "Ranges that became part of another one.",
       x_counters.merged},
      {"lethe_return_merged_bytes_total", "Bytes of ranges that became part of another one.",
       x_counters.merged_bytes},
      {"lethe_return_repeated_bytes_total", "Bytes given back twice at a time.",
       x_counters.repeated},
      {"lethe_return_moved_bytes_total", "Returned bytes moved to the scrub pool.",
       x_counters.moved},
      {"lethe_return_freed_bytes_total", "Returned bytes that the host got back.",
       x_counters.freed},
      {"lethe_return_lazy_bytes_total", "Returned bytes that the host takes when it needs them.",
       x_counters.lazy},
      {"lethe_return_overwritten_bytes_total", "Returned bytes overwritten in place, not freed.",
       x_counters.overwritten},
      {"lethe_return_absent_bytes_total", "Returned bytes that had no memory behind them.",
       x_counters.absent},
      {"lethe_return_host_failures_total", "System calls of the return pipeline that failed.",
       x_counters.host_failures},
      {"lethe_return_budget_ends_total", "Wake-ups that ended with work left.",
       x_counters.budget_ends},
  };
  for (const auto& entry : counters) sink.counter(entry.name, entry.help, value(entry.counter));
  sink.gauge("lethe_return_isolated_bytes", "Bytes taken from the guest and not yet given back.",
             static_cast<double>(value(x_counters.isolated)));
  sink.gauge("lethe_return_isolated_highest_bytes", "The most of them there ever were.",
             static_cast<double>(value(x_counters.isolated_highest)));
  sink.gauge("lethe_return_policy", "1 for the policy in force.", 1,
             {{"policy", policy_name(policy())}});
  sink.histogram("lethe_return_forget_seconds",
                 "From taking a range to the moment its content can't be read any more.",
                 forget_latency());
}

}  // namespace lethe
