// `lethe ps`: the VMs of this user.
#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <fstream>

#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/cli/vm_client.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr std::chrono::milliseconds kPsPatience{1000};  // with one VM
constexpr uint64_t kStatmUnit = 4096;                   // a page

struct PsRow {
  RunningVm vm;
  std::string state;  // "no answer" if there was none
  double uptime_s = 0;
  double cpus = 0;
  double memory_bytes = 0;
  uint64_t resident_bytes = 0;
};

uint64_t resident_bytes_of(const std::string& pid) {
  std::ifstream statm("/proc/" + pid + "/statm");
  uint64_t size = 0;
  uint64_t resident = 0;
  return statm >> size >> resident ? resident * kStatmUnit : 0;
}

PsRow look_at(const RunningVm& vm) {
  PsRow row{.vm = vm, .state = "no answer"};
  row.resident_bytes = resident_bytes_of(vm.pid);
  if (vm.since != 0) row.uptime_s = std::max(0.0, std::difftime(std::time(nullptr), vm.since));
  const auto state = get_json(vm, "/state", kPsPatience);
  if (!state) return row;
  row.state = printable(text_at(*state, "state"));
  row.uptime_s = number_at(*state, "uptime_s").value_or(row.uptime_s);
  row.cpus = number_at(*state, "cpus").value_or(0);
  row.memory_bytes = number_at(*state, "memory_bytes").value_or(0);
  return row;
}

std::string ps_json(const std::vector<PsRow>& rows) {
  namespace json = boost::json;
  json::array array;
  for (const PsRow& row : rows)
    array.push_back(json::object{{"name", row.vm.name},
                                 {"state", row.state},
                                 {"pid", std::strtoull(row.vm.pid.c_str(), nullptr, 10)},
                                 {"uptime_s", row.uptime_s},
                                 {"cpus", static_cast<uint64_t>(row.cpus)},
                                 {"memory_bytes", static_cast<uint64_t>(row.memory_bytes)},
                                 {"resident_bytes", row.resident_bytes},
                                 {"config", row.vm.config}});
  return json::serialize(array) + "\n";
}

std::string ps_table(const std::vector<PsRow>& rows) {
  size_t width = 4;
  for (const PsRow& row : rows) width = std::max(width, row.vm.name.size());
  std::string text = fmt::format("{:<{}}  {:<10} {:>8}  {:>12} {:>5} {:>10} {:>10}\n", "NAME",
                                 width, "STATE", "PID", "UPTIME", "CPUS", "MEMORY", "RESIDENT");
  for (const PsRow& row : rows)
    text += fmt::format("{:<{}}  {:<10} {:>8}  {:>12} {:>5} {:>10} {:>10}\n", row.vm.name, width,
                        row.state, row.vm.pid, human_uptime(row.uptime_s),
                        row.cpus == 0 ? "-" : fmt::format("{}", row.cpus),
                        row.memory_bytes == 0 ? "-" : human_bytes(row.memory_bytes),
                        human_bytes(static_cast<double>(row.resident_bytes)));
  return text;
}

}  // namespace

int command_ps(int argc, char** argv) {
  CommandLine line("ps", "Lists the VMs of this user that run now.",
                   "  lethe ps\n"
                   "  lethe ps --json | jq -r '.[] | select(.state == \"paused\") | .name'\n"
                   "  lethe ps --quiet | xargs -n1 lethe log -n 5\n",
                   "0 listed, also if none runs; 2 bad usage.");
  bool as_json = false;
  bool quiet = false;
  CLI::Option* const json = line.app().add_flag("--json", as_json, "An array, as JSON");
  line.app().add_flag("-q,--quiet", quiet, "Names only, one a line")->excludes(json);
  if (const auto code = line.parse(argc, argv)) return *code;
  std::vector<PsRow> rows;
  for (const RunningVm& vm : running_vms()) {
    if (quiet)
      fmt::print("{}\n", vm.name);
    else
      rows.push_back(look_at(vm));
  }
  if (!quiet) std::fputs((as_json ? ps_json(rows) : ps_table(rows)).c_str(), stdout);
  return 0;
}

}  // namespace lethe
