// `lethe reclaim`: free memory pulled out of a guest now.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cstdio>

#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/cli/vm_client.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr std::chrono::minutes kPullPatience{2};  // without a word; a guest may be slow
constexpr int kExitInterrupted = 130;

std::atomic<bool> interrupted{false};

struct Pull {
  double bytes = 0;
  double took_ms = 0;
  bool ended = false;
  bool complete = false;
  std::string text;
};

void take_line(std::string_view line, Pull& pull, bool show) {
  boost::json::error_code error;
  const auto value = boost::json::parse(boost::json::string_view(line.data(), line.size()), error);
  if (error) return;
  pull.bytes = number_at(value, "bytes").value_or(pull.bytes);
  if (const auto* complete = find_path(value, "complete"); complete && complete->is_bool()) {
    pull.ended = true;
    pull.complete = complete->get_bool();
    pull.took_ms = number_at(value, "took_ms").value_or(0);
    pull.text = printable(text_at(value, "text"));
  }
  if (show) fmt::print(stderr, "\r\x1b[K{} ...", human_bytes(pull.bytes));
}

Result<Pull> pull_memory(const RunningVm& vm, const std::string& bytes, bool show) {
  Pull pull;
  const auto answer =
      http_request({.socket = vm.path + "/" + kApiSocketName,
                    .method = "POST",
                    .path = "/memory/reclaim",
                    .body = fmt::format("{{\"bytes\":{}}}", bytes),
                    .patience = kPullPatience,
                    .cancelled = &interrupted,
                    .on_line = [&](std::string_view line) { take_line(line, pull, show); }});
  if (show) fmt::print(stderr, "\r\x1b[K");
  if (!answer) {
    if (interrupted.load()) return pull;
    return host_error("'{}' (process {}): {}", vm.name, vm.pid, answer.error().text);
  }
  if (answer->status != 200) return host_error("'{}': {}", vm.name, error_in(*answer));
  return pull;
}

int tell(const RunningVm& vm, const Pull& pull, bool as_json) {
  if (interrupted.load()) {
    print_error(fmt::format("reclaim: interrupted after {}; what '{}' has begun goes on",
                            human_bytes(pull.bytes), vm.name));
    return kExitInterrupted;
  }
  if (as_json)
    fmt::print("{}\n", boost::json::serialize(
                           boost::json::object{{"bytes", static_cast<uint64_t>(pull.bytes)},
                                               {"took_ms", static_cast<uint64_t>(pull.took_ms)},
                                               {"complete", pull.complete},
                                               {"text", pull.text}}));
  else
    fmt::print("{} returned in {}{}\n", human_bytes(pull.bytes),
               human_duration(pull.took_ms / 1000), pull.complete ? "" : ", incomplete");
  if (pull.complete) return 0;
  print_error(fmt::format("reclaim: {}", pull.ended && !pull.text.empty()
                                             ? pull.text
                                             : "the VM ended before it was done"));
  return kExitHostError;
}

}  // namespace

int command_reclaim(int argc, char** argv) {
  CommandLine line("reclaim",
                   "Pulls free memory out of a running guest now: BYTES of it, or all that the "
                   "guest can spare. The guest keeps a reserve.",
                   "  lethe reclaim web\n"
                   "  lethe reclaim web 512M\n"
                   "  lethe reclaim web --json | jq .bytes\n",
                   "0 done; 1 incomplete or not possible: a line says why; 2 bad usage; "
                   "130 interrupted.");
  std::string name;
  std::string amount = "all";
  bool as_json = false;
  line.app().add_option("NAME", name, "The VM's name (lethe ps lists those that run)")->required();
  line.app().add_option("BYTES", amount, "How much, such as 512M, or all (default)");
  line.app().add_flag("--json", as_json, "What became of it, as JSON");
  if (const auto code = line.parse(argc, argv)) return *code;
  const auto bytes = parse_size(amount);
  if (amount != "all" && (!bytes || *bytes == 0)) {
    print_error(fmt::format("reclaim: '{}' does not fit: write a size such as 512M, or all",
                            printable(amount)));
    return kExitUsage;
  }
  const auto vm = find_running_vm(name);
  if (!vm) {
    print_error(vm.error().text);
    return exit_code_of(vm.error().kind);
  }
  struct sigaction action{};
  action.sa_handler = [](int) { interrupted.store(true); };
  (void)::sigaction(SIGINT, &action, nullptr);
  (void)::sigaction(SIGTERM, &action, nullptr);
  const auto pull =
      pull_memory(*vm, bytes ? std::to_string(*bytes) : "\"all\"", ::isatty(STDERR_FILENO) == 1);
  if (pull) return tell(*vm, *pull, as_json);
  print_error(pull.error().text);
  return exit_code_of(pull.error().kind);
}

}  // namespace lethe
