// `lethe top`: what a running VM answers as a row, and rows as a table.
#pragma once

#include <boost/json/value.hpp>
#include <chrono>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lethe {

enum class TopSort : uint8_t { kResident, kName, kCpu, kReturned };

struct TopRow {
  std::string name;
  std::string problem;  // why there are no figures; empty: there are
  double uptime_s = 0;
  double cpu_percent = 0;  // of one processor, since the last look; the first time since its start
  double size = 0;         // bytes from here
  double resident = 0;
  double process = 0;
  std::optional<double> guest_free;  // the guest's word
  double returned = 0;
  double returned_per_s = 0;
  double pool = 0;
  double target = 0;
  std::string decision;  // the governor's last, or empty
};

// Turns answers into rows; keeps what it needs to tell rates.
class TopSampler {
 public:
  using Clock = std::chrono::steady_clock;
  [[nodiscard]] TopRow sample(const std::string& name, const boost::json::value& state,
                              const boost::json::value& stats, Clock::time_point now);

 private:
  struct Last {
    Clock::time_point when;
    double pid = 0;
    double cpu_s = 0;
    double returned = 0;
  };
  std::map<std::string, Last> x_last;
};

void sort_rows(std::vector<TopRow>& rows, TopSort by);

// An array with a newline. Who did not answer has a name and a problem.
[[nodiscard]] std::string top_json(std::span<const TopRow> rows);

// Lines with newlines, a head first, each cut at `columns` (0: whole), at most `lines` of them (0:
// all). The names of columns are in reverse video if `highlight`.
[[nodiscard]] std::string top_table(std::span<const TopRow> rows, size_t columns, size_t lines,
                                    bool highlight);

}  // namespace lethe
