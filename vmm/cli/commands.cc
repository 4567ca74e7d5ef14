// The commands but `check` (vmm/cli/check_command.cc).
#include <fmt/format.h>

#include "base/log.h"
#include "vmm/api/http_server.h"
#include "vmm/boot/boot.h"
#include "vmm/check/exec_steps.h"
#include "vmm/check/pattern.h"
#include "vmm/check/screen_steps.h"
#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/config_schema.h"
#include "vmm/detach.h"

namespace lethe {
namespace {

int fail(const Error& error) {
  print_error(error.text);
  return exit_code_of(error.kind);
}

// All that is wrong with one config file, a line each; empty when it is good.
std::vector<std::string> problems_of(const std::string& file) {
  const auto text = read_config_file(file);
  if (!text) return {text.error().text};
  std::vector<std::string> problems;
  const VmConfig config = parse_config(*text, file, {}, problems);
  if (!problems.empty()) return problems;
  problems = check_config_files(config, file);
  if (problems.empty()) {
    const auto boots =
        check_boot_files({.kernel = config.boot.kernel, .initrd = config.boot.initrd});
    if (!boots) problems.push_back(fmt::format("{}: {}", printable(file), boots.error().text));
  }
  for (std::string& missing : missing_images(config.check.screen, file))
    problems.push_back(std::move(missing));
  if (const auto patterns = compile_patterns(config.check, file); !patterns)
    problems.push_back(patterns.error().text);
  if (const auto plan = plan_exec(config, file); !plan) problems.push_back(plan.error().text);
  return problems;
}

std::string json_line(const std::string& file, const std::vector<std::string>& problems) {
  std::string list;
  for (const std::string& problem : problems)
    list += (list.empty() ? "" : ",") + json_quote(problem);
  return fmt::format("{{\"file\":{},\"problems\":[{}]}}", json_quote(file), list);
}

}  // namespace

int command_run(int argc, char** argv) {
  CommandLine line(
      "run",
      "Runs the VM that CONFIG describes, to its end. Its console is this terminal; with --detach "
      "the VM goes on without one, and this command ends once it runs: lethe ps, log, console and "
      "stop are for it then.",
      "  lethe run vm.toml\n"
      "  lethe run -d vm.toml && lethe console vm\n"
      "  lethe run vm.toml --set memory.size=1G --set boot.cmdline=\"quiet\"\n"
      "  lethe run vm.toml --non-interactive --log info > console.log\n",
      "0 the guest powered off, or runs detached; 1 host error; 2 bad config or usage; "
      "3 rebooted; 4 panicked; 5 triple fault; 6 ended by force; 7 no KVM; "
      "64 + N the guest wrote N to debug-exit.");
  std::string config_file;
  std::string name;
  std::vector<std::string> overrides;
  RunOptions options;
  line.app().add_option("CONFIG", config_file, "The VM's config file (TOML)")->required();
  line.app().add_option("--name", name, "Run under this name instead of the config's");
  line.app()
      .add_option("--set", overrides, "Override a key of the config: KEY=VALUE; repeatable")
      ->allow_extra_args(false);
  StartOptions start;
  add_start_options(line.app(), start, options);
  if (const auto code = line.parse(argc, argv)) return *code;

  if (const auto set = set_log_levels(start.log); !set) return fail(set.error());
  if (line.app().count("--name") > 0) overrides.push_back("name=" + name);
  const auto config = load_config(config_file, overrides);
  if (!config) return fail(config.error());
  if (const auto missing = check_config_files(*config, config_file); !missing.empty()) {
    print_error(missing[0]);
    return kExitUsage;
  }
  options.config_file = config_file;
  if (!start.detached) return run_machine(*config, options);
  options.non_interactive = true;
  auto side = detach();
  if (!side) return fail(side.error());
  if (side->parent_code) return *side->parent_code;
  return run_machine(*config, options, std::move(side->signal));
}

int command_validate(int argc, char** argv) {
  CommandLine line("validate",
                   "Checks configs, and that the files they name are there. Lists every error.",
                   "  lethe validate vm.toml\n"
                   "  lethe validate *.toml --json\n"
                   "  lethe validate --print-reference\n",
                   "0 all are good; 2 one is not.");
  std::vector<std::string> files;
  bool reference = false;
  bool as_json = false;
  line.app().add_option("CONFIG", files, "Config files (TOML)");
  line.app().add_flag("--print-reference", reference, "Print the list of all keys (Markdown)");
  line.app().add_flag("--json", as_json, "Each file and its errors, as JSON");
  if (const auto code = line.parse(argc, argv)) return *code;

  if (reference) {
    std::fputs(config_reference().c_str(), stdout);
    return 0;
  }
  if (files.empty()) {
    print_error("validate: CONFIG is missing (lethe validate --help tells more)");
    return kExitUsage;
  }
  int code = 0;
  std::string list;
  for (const std::string& file : files) {
    const std::vector<std::string> problems = problems_of(file);
    if (!problems.empty()) code = kExitUsage;
    list += (list.empty() ? "" : ",") + json_line(file, problems);
    if (as_json) continue;
    for (const std::string& problem : problems) print_error(problem);
    if (problems.empty()) fmt::print("{}: good\n", file);
  }
  if (as_json) fmt::print("[{}]\n", list);
  return code;
}

int command_doctor(int argc, char** argv) {
  CommandLine line("doctor",
                   "Finds out whether this host can run VMs, and whether at hardware speed.",
                   "  lethe doctor\n"
                   "  lethe doctor --quiet && echo fast\n",
                   "0 fast; 10 KVM runs guest code by emulation; 7 no KVM.");
  DoctorOptions options;
  CLI::Option* const quiet =
      line.app().add_flag("-q,--quiet", options.quiet, "Print nothing: only the exit code tells");
  line.app().add_flag("--json", options.json, "The findings, as JSON")->excludes(quiet);
  if (const auto code = line.parse(argc, argv)) return *code;
  return run_doctor(options);
}

int command_version(int argc, char** argv) {
  CommandLine line("version", "Prints the version.",
                   "  lethe version\n"
                   "  lethe version --json\n",
                   "0 printed; 2 bad usage.");
  bool as_json = false;
  line.app().add_flag("--json", as_json, "As JSON");
  if (const auto code = line.parse(argc, argv)) return *code;
  std::puts(as_json ? "{\"version\":\"" LETHE_VERSION "\"}" : "lethe " LETHE_VERSION);
  return 0;
}

}  // namespace lethe
