#include <fmt/format.h>

#include <cstdio>

#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/cli/stats_view.h"
#include "vmm/cli/vm_client.h"

namespace lethe {
namespace {

Result<> print_stats(const std::string& name, bool as_json) {
  LETHE_TRY_ASSIGN(const RunningVm vm, find_running_vm(name));
  LETHE_TRY_ASSIGN(const std::string text, get_text(vm, "/stats"));
  if (as_json) {
    std::fputs(text.c_str(), stdout);
    return {};
  }
  LETHE_TRY_ASSIGN(const auto stats, parse_answer(vm, text));
  LETHE_TRY_ASSIGN(const auto state, get_json(vm, "/state"));
  std::fputs(stats_table(state, stats).c_str(), stdout);
  return {};
}

}  // namespace

int command_stats(int argc, char** argv) {
  CommandLine line("stats",
                   "Shows what a running VM counts: its memory, what the guest gave back and what "
                   "became of it.",
                   "  lethe stats web\n"
                   "  lethe stats web --json | jq .memory.resident_bytes\n"
                   "  curl --unix-socket $XDG_RUNTIME_DIR/lethe/web/api.sock http://web/metrics\n",
                   "0 shown; 1 the VM does not run or does not answer; 2 bad usage.");
  std::string name;
  bool as_json = false;
  line.app().add_option("NAME", name, "The VM's name (lethe ps lists those that run)")->required();
  line.app().add_flag("--json", as_json, "Everything, as JSON");
  if (const auto code = line.parse(argc, argv)) return *code;
  if (const auto printed = print_stats(name, as_json); !printed) {
    print_error(printed.error().text);
    return exit_code_of(printed.error().kind);
  }
  return 0;
}

}  // namespace lethe
