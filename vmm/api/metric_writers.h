// Two ways to write metrics down: Prometheus' text format, and JSON.
//
// Threading: each object belongs to one thread.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/metrics.h"

namespace lethe {

// Prometheus text format 0.0.4: the samples of a name together, under one HELP and one TYPE line,
// in the order in which names were first seen. Histograms are written in seconds, a bucket for each
// power of two from 1 us (2^10 ns) up, and the longest as a gauge NAME_max.
class PrometheusWriter final : public MetricSink {
 public:
  static constexpr const char* kContentType = "text/plain; version=0.0.4; charset=utf-8";
  void counter(std::string_view name, std::string_view help, uint64_t value,
               Labels labels = {}) override;
  void gauge(std::string_view name, std::string_view help, double value,
             Labels labels = {}) override;
  void histogram(std::string_view name, std::string_view help, const Histogram::Snapshot& durations,
                 Labels labels = {}) override;
  [[nodiscard]] std::string text() const;

 private:
  struct Family {
    std::string head;
    std::string samples;
  };
  Family& family(std::string_view name, std::string_view help, const char* type);
  std::vector<std::unique_ptr<Family>> x_families;
  std::map<std::string, Family*, std::less<>> x_by_name;
};

// One JSON object: names lose "lethe_" and are cut at their first '_', labels become keys, in their
// order. lethe_return_reported_bytes_total{source="report"} is return.reported_bytes_total.report.
// A histogram is an object of count, and of sum, p50, p99 and max in seconds.
class JsonMetricWriter final : public MetricSink {
 public:
  JsonMetricWriter();
  ~JsonMetricWriter() override;
  void counter(std::string_view name, std::string_view help, uint64_t value,
               Labels labels = {}) override;
  void gauge(std::string_view name, std::string_view help, double value,
             Labels labels = {}) override;
  void histogram(std::string_view name, std::string_view help, const Histogram::Snapshot& durations,
                 Labels labels = {}) override;
  [[nodiscard]] std::string text() const;  // without a newline

 private:
  struct Tree;
  std::unique_ptr<Tree> x_tree;
};

}  // namespace lethe
