// Does the governor oscillate, or let anybody fall below a floor? All traces of the simulation
// (memory/fake_host.h), with many seeds.
#include <fmt/core.h>

#include <algorithm>
#include <string>

#include "bench/report.h"
#include "memory/fake_host.h"

int main(int argc, char** argv) {
  lethe::BenchReport report(argc, argv);
  const uint32_t seeds =
      report.arguments().empty() ? 200 : static_cast<uint32_t>(std::stoul(report.arguments()[0]));
  int reversals_max = 0;
  int violations = 0;
  for (const auto& trace : lethe::governor_traces()) {
    int worst = 0;
    int below = 0;
    int bad_seeds = 0;
    uint64_t moves = 0;
    std::string where;
    for (uint32_t seed = 1; seed <= seeds; ++seed) {
      const auto result = trace.run(seed);
      if (result.reversals_max > 1 || result.floor_violations > 0) {
        if (bad_seeds++ == 0)
          where =
              fmt::format("\n  seed {}: {}; {}", seed, result.reversals_where, result.floor_where);
      }
      worst = std::max(worst, result.reversals_max);
      below += result.floor_violations;
      moves += result.moves;
    }
    fmt::print("{:<8} {} seeds: reversals at most {}, {} s below a floor, {} moves each{}{}\n",
               trace.name, seeds, worst, below, moves / seeds,
               bad_seeds > 0 ? fmt::format(", {} seeds bad", bad_seeds) : "", where);
    reversals_max = std::max(reversals_max, worst);
    violations += below;
  }
  report.add("governor.reversals_max", reversals_max, "reversals");
  report.add("governor.floor_violations", violations, "s");
  return report.finish();
}
