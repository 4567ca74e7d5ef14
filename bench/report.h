// What a benchmark measured: printed last, one a line, as `metric value unit`; with `--json FILE`
// also written there as an object {"metric": value, ...}.
//
//   int main(int argc, char** argv) {
//     lethe::BenchReport report(argc, argv);
//     report.add("queue.ns_per_chain", 41.5, "ns");
//     return report.finish();
//   }
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lethe {

// The value that a share (0 to 1) of all are below; NaN if there are none.
[[nodiscard]] double quantile(std::vector<double> values, double share);
[[nodiscard]] inline double median(std::vector<double> values) {
  return quantile(std::move(values), 0.5);
}

class BenchReport {
 public:
  // Reads `--json FILE` from the command line. Anything else it does not know stays in arguments().
  BenchReport(int argc, char** argv);

  [[nodiscard]] const std::vector<std::string>& arguments() const { return x_arguments; }

  void add(std::string_view metric, double value, std::string_view unit);
  // Prints the metrics, writes the file; the program's exit code: 0, or 1 (with a line on stderr)
  // if the file can't be written.
  [[nodiscard]] int finish() const;

 private:
  struct Metric {
    std::string name;
    double value = 0;
    std::string unit;
  };
  std::vector<std::string> x_arguments;
  std::string x_json_path;
  std::vector<Metric> x_metrics;
};

}  // namespace lethe
