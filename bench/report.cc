#include "bench/report.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "base/result.h"

namespace lethe {
namespace {

// JSON has no NaN or infinity.
std::string json_number(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

}  // namespace

double quantile(std::vector<double> values, double share) {
  if (values.empty()) return std::nan("");
  const auto n =
      std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(n), values.end());
  return values[n];
}

BenchReport::BenchReport(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument != "--json") {
      x_arguments.emplace_back(argument);
      continue;
    }
    if (i + 1 == argc) {
      fmt::print(stderr, "--json needs a file name\n");
      std::exit(2);
    }
    x_json_path = argv[++i];
  }
}

void BenchReport::add(std::string_view metric, double value, std::string_view unit) {
  x_metrics.push_back({std::string(metric), value, std::string(unit)});
}

int BenchReport::finish() const {
  std::string json;
  for (const Metric& metric : x_metrics) {
    fmt::print("{} {:.6g} {}\n", metric.name, metric.value, metric.unit);
    json += fmt::format("{}\"{}\": {}", json.empty() ? "" : ", ", metric.name,
                        json_number(metric.value));
  }
  std::fflush(stdout);
  if (x_json_path.empty()) return 0;
  std::FILE* const file = std::fopen(x_json_path.c_str(), "w");
  const bool written = file != nullptr && std::fprintf(file, "{%s}\n", json.c_str()) > 0;
  const bool closed = file != nullptr && std::fclose(file) == 0;
  if (written && closed) return 0;
  fmt::print(stderr, "cannot write {}: {}\n", x_json_path, errno_text(errno));
  return 1;
}

}  // namespace lethe
