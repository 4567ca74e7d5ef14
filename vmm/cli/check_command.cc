#include <fmt/format.h>

#include "vmm/check/check.h"
#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

// "2/4": the second of four.
bool parse_shard(const std::string& text, CheckOptions& options) {
  const size_t slash = text.find('/');
  if (slash == std::string::npos) return false;
  const auto shard = parse_size(std::string_view(text).substr(0, slash));
  const auto shards = parse_size(std::string_view(text).substr(slash + 1));
  if (!shard || !shards || *shards > 10000 || *shard < 1 || *shard > *shards) return false;
  options.shard = static_cast<uint32_t>(*shard);
  options.shards = static_cast<uint32_t>(*shards);
  return true;
}

}  // namespace

int command_check(int argc, char** argv) {
  CommandLine line(
      "check",
      "Boots guests from configs that have a [check] table, and checks how they end, what they "
      "print, what is on their screens, and what commands in them do. A directory stands for its "
      "*.toml files.",
      "  lethe check guests/*.toml --jobs 4 --junit out.xml\n"
      "  lethe check guests --json | jq -r '.[] | select(.outcome == \"failed\") | .name'\n"
      "  lethe check guests --shard 2/3 --retry 1 --out logs\n",
      "0 none failed; 1 some failed; 2 bad config or usage; 130 interrupted.");
  CheckOptions options;
  std::string shard = "1/1";
  std::string memory;
  line.app().add_option("CONFIG", options.inputs, "Config files or directories")->required();
  line.app().add_option("--junit", options.junit_file, "Write a JUnit XML report to this file");
  line.app().add_flag("--json", options.json,
                      "Print an array of the results, as JSON; all else goes to standard error");
  line.app().add_option("--out", options.out_dir,
                        "Keep each guest's console as NAME.log in this directory, and the "
                        "pictures of its screen in NAME.screen, what commands in it did in "
                        "NAME.exec.log, and its artifacts in NAME.artifacts");
  line.app()
      .add_option("-j,--jobs", options.jobs, "Guests at a time (default: 1)")
      ->check(CLI::Range(1, 256));
  line.app().add_option("--memory", memory,
                        "Guests at a time have at most so much memory together, such as 8G "
                        "(default: what the host has available)");
  line.app().add_option("--shard", shard, "I/N: run the I-th of N parts of the guests");
  line.app()
      .add_option("--retry", options.retries, "Run a failed guest up to N times more (default: 0)")
      ->check(CLI::Range(0, 10));
  line.app()
      .add_option("--timeout-scale", options.timeout_scale,
                  "Multiply all deadlines, for slow hosts (default: 1)")
      ->check(number_between(0.01, 1000));
  // For our own tests: a stand-in for `lethe`.
  line.app().add_option("--program", options.program)->group("");
  line.app().add_option("--shot-program", options.shot_program)->group("");
  if (const auto code = line.parse(argc, argv)) return *code;
  if (!parse_shard(shard, options)) {
    print_error(
        fmt::format("check: --shard '{}' does not fit: write I/N with I from 1 to N, such "
                    "as 2/3",
                    printable(shard)));
    return kExitUsage;
  }
  if (!memory.empty()) {
    options.memory_bytes = parse_size(memory);
    if (!options.memory_bytes || *options.memory_bytes == 0) {
      print_error(fmt::format("check: --memory '{}' does not fit: write a size such as 8G",
                              printable(memory)));
      return kExitUsage;
    }
  }
  return run_checks(options);
}

}  // namespace lethe
