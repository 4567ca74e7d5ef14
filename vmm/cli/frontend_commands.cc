// attach, vnc, shot: they find the VM and its GUI, and become the frontend.
#include <fmt/format.h>
#include <unistd.h>

#include <vector>

#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/config_schema.h"
#include "vmm/frontend_program.h"
#include "vmm/run_dir.h"

namespace lethe {
namespace {

constexpr const char* kFrontendExits =
    "0 done; 1 the VM does not run or has no GUI, or the frontend failed; 2 bad usage.";

// Returns only if it fails.
Result<> become_frontend(const std::string& program, int argc, char** argv) {
  LETHE_TRY_ASSIGN(const RunningVm vm, find_running_vm(argv[1]));
  if (::access((vm.path + "/" + kGuiSocketName).c_str(), F_OK) != 0)
    return host_error("'{}' has no GUI: add [gui] enabled = true to its config, and run it anew",
                      printable(vm.name));
  LETHE_TRY_ASSIGN(std::string path, find_frontend(program));
  std::string name = program;
  std::vector<char*> words = {name.data()};
  for (int i = 1; i < argc; ++i) words.push_back(argv[i]);
  words.push_back(nullptr);
  ::execv(path.c_str(), words.data());
  return host_error("cannot start '{}': {}", printable(path), errno_text(errno));
}

// What follows NAME is the frontend's business.
int run_frontend(const char* program, CommandLine& line, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') {
    std::string name;
    line.app()
        .add_option("NAME", name, "The VM's name (lethe ps lists those that run)")
        ->required();
    if (const auto code = line.parse(argc, argv)) return *code;
    print_error("NAME comes first, then the frontend's own options");
    return kExitUsage;
  }
  const auto failed = become_frontend(program, argc, argv);
  print_error(failed.error().text);
  return exit_code_of(failed.error().kind);
}

}  // namespace

int command_attach(int argc, char** argv) {
  CommandLine line("attach",
                   "Shows a running VM's screen and windows, each in a window of this desktop; the "
                   "VM needs [gui] enabled = true. What follows NAME goes to lethe-view.",
                   "  lethe attach work\n"
                   "  lethe attach work --help      # lethe-view's own options\n",
                   kFrontendExits);
  return run_frontend("lethe-view", line, argc, argv);
}

int command_vnc(int argc, char** argv) {
  CommandLine line("vnc",
                   "Serves a running VM's screen to VNC clients and browsers; the VM needs [gui] "
                   "enabled = true. What follows NAME goes to lethe-vnc.",
                   "  lethe vnc work --help         # lethe-vnc's own options\n", kFrontendExits);
  return run_frontend("lethe-vnc", line, argc, argv);
}

int command_shot(int argc, char** argv) {
  CommandLine line("shot",
                   "Writes a picture of a running VM's screen, or of one of its windows, as PNG; "
                   "the VM needs [gui] enabled = true. What follows NAME goes to lethe-shot.",
                   "  lethe shot work screen.png\n"
                   "  lethe shot work xterm.png --window xterm\n"
                   "  lethe shot work --help        # lethe-shot's own options\n",
                   kFrontendExits);
  return run_frontend("lethe-shot", line, argc, argv);
}

}  // namespace lethe
