// How a component shows its counters: it is asked, and tells a sink. No registry, no globals: who
// owns a component passes the question on. The sinks make Prometheus text and JSON of it
// (vmm/api/).
//
// Names follow Prometheus: lethe_<what>_<unit>, counters end in _total. Units are bytes and
// seconds.
#pragma once

#include <initializer_list>
#include <string_view>

#include "base/histogram.h"

namespace lethe {

struct MetricLabel {
  std::string_view name;
  std::string_view value;
};

class MetricSink {
 public:
  using Labels = std::initializer_list<MetricLabel>;
  virtual ~MetricSink() = default;
  virtual void counter(std::string_view name, std::string_view help, uint64_t value,
                       Labels labels = {}) = 0;
  virtual void gauge(std::string_view name, std::string_view help, double value,
                     Labels labels = {}) = 0;
  virtual void histogram(std::string_view name, std::string_view help,
                         const Histogram::Snapshot& durations, Labels labels = {}) = 0;
};

}  // namespace lethe
