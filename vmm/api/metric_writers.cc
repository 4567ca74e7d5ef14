#include "vmm/api/metric_writers.h"

#include <fmt/format.h>

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cmath>

namespace lethe {
namespace json = boost::json;

namespace {

constexpr size_t kFirstBucket = 10;  // 2^10 ns: what is shorter is counted there

double seconds(uint64_t ns) { return static_cast<double>(ns) * 1e-9; }

// The format's escapes for label values; help texts take the same but the quote.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

// {a="b",c="d"}; `extra` is one more, written already. Nothing for no labels.
std::string label_text(MetricSink::Labels labels, std::string_view extra = {}) {
  std::string text;
  for (const MetricLabel& label : labels)
    text += fmt::format("{}{}=\"{}\"", text.empty() ? "{" : ",", label.name, escaped(label.value));
  if (!extra.empty()) text += fmt::format("{}{}", text.empty() ? "{" : ",", extra);
  return text.empty() ? text : text + "}";
}

// Counts are whole numbers, however large; fmt writes the shortest text that reads back the same.
std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  if (value == std::floor(value) && std::fabs(value) < 9e15) return fmt::format("{:.0f}", value);
  return fmt::format("{}", value);
}

}  // namespace

PrometheusWriter::Family& PrometheusWriter::family(std::string_view name, std::string_view help,
                                                   const char* type) {
  if (const auto found = x_by_name.find(name); found != x_by_name.end()) return *found->second;
  std::string help_line(help);
  for (char& c : help_line)
    if (c == '\n' || c == '\\') c = ' ';
  x_families.push_back(std::make_unique<Family>(
      fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help_line, name, type), ""));
  x_by_name.emplace(name, x_families.back().get());
  return *x_families.back();
}

void PrometheusWriter::counter(std::string_view name, std::string_view help, uint64_t value,
                               Labels labels) {
  family(name, help, "counter").samples +=
      fmt::format("{}{} {}\n", name, label_text(labels), value);
}

void PrometheusWriter::gauge(std::string_view name, std::string_view help, double value,
                             Labels labels) {
  family(name, help, "gauge").samples +=
      fmt::format("{}{} {}\n", name, label_text(labels), number(value));
}

void PrometheusWriter::histogram(std::string_view name, std::string_view help,
                                 const Histogram::Snapshot& durations, Labels labels) {
  std::string& out = family(name, help, "histogram").samples;
  uint64_t below = 0;
  for (size_t i = 0; i + 1 < Histogram::kBuckets; ++i) {
    below += durations.buckets[i];
    if (i < kFirstBucket) continue;
    // A bucket is of durations below its end, the format's of those up to it: for whole
    // nanoseconds the difference is one of them.
    const std::string end = fmt::format("le=\"{}\"", seconds(uint64_t{1} << i));
    out += fmt::format("{}_bucket{} {}\n", name, label_text(labels, end), below);
  }
  out += fmt::format("{}_bucket{} {}\n", name, label_text(labels, "le=\"+Inf\""), durations.count);
  out += fmt::format("{}_sum{} {}\n", name, label_text(labels), seconds(durations.sum_ns));
  out += fmt::format("{}_count{} {}\n", name, label_text(labels), durations.count);
  gauge(fmt::format("{}_max", name), "The longest of them.", seconds(durations.max_ns), labels);
}

std::string PrometheusWriter::text() const {
  std::string all;
  for (const auto& family : x_families) all += family->head + family->samples;
  return all;
}

struct JsonMetricWriter::Tree {
  json::object root;

  // An object at the key of `parent`. A number that stood there without labels moves to "".
  static json::object& child(json::object& parent, std::string_view key) {
    json::value& value = parent[json::string_view(key.data(), key.size())];
    if (value.is_object()) return value.get_object();
    json::object made;
    if (!value.is_null()) made[""] = value;
    return value.emplace_object() = std::move(made);
  }

  void set(std::string_view name, Labels labels, json::value value) {
    if (name.starts_with("lethe_")) name.remove_prefix(6);
    const size_t cut = name.find('_');
    json::object* at = &root;
    std::string_view key = name;
    if (cut != std::string_view::npos) {
      at = &child(*at, name.substr(0, cut));
      key = name.substr(cut + 1);
    }
    for (const MetricLabel& label : labels) {
      at = &child(*at, key);
      key = label.value;
    }
    (*at)[json::string_view(key.data(), key.size())] = std::move(value);
  }
};

JsonMetricWriter::JsonMetricWriter() : x_tree(std::make_unique<Tree>()) {}
JsonMetricWriter::~JsonMetricWriter() = default;

void JsonMetricWriter::counter(std::string_view name, std::string_view, uint64_t value,
                               Labels labels) {
  x_tree->set(name, labels, value);
}

void JsonMetricWriter::gauge(std::string_view name, std::string_view, double value, Labels labels) {
  if (std::isnan(value) || std::isinf(value)) return x_tree->set(name, labels, nullptr);
  // Whole numbers as such: JSON readers differ in what they make of 1.34217728E8.
  if (value == std::floor(value) && std::fabs(value) < 9e15)
    return x_tree->set(name, labels, static_cast<int64_t>(value));
  x_tree->set(name, labels, value);
}

void JsonMetricWriter::histogram(std::string_view name, std::string_view,
                                 const Histogram::Snapshot& durations, Labels labels) {
  json::object value;
  value["count"] = durations.count;
  value["sum"] = seconds(durations.sum_ns);
  value["p50"] = seconds(durations.quantile_ns(0.5));
  value["p99"] = seconds(durations.quantile_ns(0.99));
  value["max"] = seconds(durations.max_ns);
  x_tree->set(name, labels, std::move(value));
}

std::string JsonMetricWriter::text() const { return json::serialize(x_tree->root); }

}  // namespace lethe
