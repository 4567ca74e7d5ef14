// stop, kill, pause, resume: the VMs that are named, or all.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/cli/vm_client.h"
#include "vmm/cli/vm_process.h"
#include "vmm/cli/vm_selection.h"
#include "vmm/cli/wait_signals.h"
#include "vmm/config_schema.h"

namespace lethe {

Result<std::vector<RunningVm>> VmSelection::find() const {
  if (x_all) return running_vms();
  if (x_names.empty()) return config_error("NAME is missing: name VMs, or write --all");
  std::vector<RunningVm> found;
  for (const std::string& name : x_names) {
    LETHE_TRY_ASSIGN(RunningVm vm, find_running_vm(name));
    const auto same = [&](const RunningVm& other) { return other.name == name; };
    if (std::none_of(found.begin(), found.end(), same)) found.push_back(std::move(vm));
  }
  return found;
}

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kAskPatience{2000};
// From an order to end that was taken, or a SIGKILL, to the end.
constexpr milliseconds kKillPatience{5000};
constexpr milliseconds kProgressPeriod{1000};

int fail(const char* command, const Error& error) {
  print_error(error.kind == ErrorClass::kConfig
                  ? fmt::format("{}: {} (lethe {} --help tells more)", command, error.text, command)
                  : error.text);
  return exit_code_of(error.kind);
}

Result<> post(const RunningVm& vm, std::string_view path) {
  const auto answer = http_request({.socket = vm.path + "/" + kApiSocketName,
                                    .method = "POST",
                                    .path = std::string(path),
                                    .patience = kAskPatience});
  if (!answer) return host_error("'{}' (process {}): {}", vm.name, vm.pid, answer.error().text);
  if (answer->status >= 300) return host_error("'{}': {}", vm.name, error_in(*answer));
  return {};
}

// VMs that have been asked to end, until they have.
class EndWait {
 public:
  EndWait(std::string_view command, const std::vector<RunningVm>& vms)
      : x_command(command), x_all(vms.size()) {}

  void add(const RunningVm& vm, VmProcess process) {
    x_waiting.push_back({vm.name, std::move(process)});
  }
  struct Waiting {
    std::string name;
    VmProcess process;
  };
  // Those that have not ended.
  [[nodiscard]] const std::vector<Waiting>& waiting() const { return x_waiting; }
  [[nodiscard]] std::string names() const {
    std::string text;
    for (const Waiting& each : x_waiting) text += (text.empty() ? "'" : ", '") + each.name + "'";
    return text;
  }

  // Until all have ended, or the time is over. Returns the signal that ended the wait, or 0.
  int wait(WaitSignals& signals, milliseconds patience) {
    const bool show = ::isatty(STDERR_FILENO) == 1;
    const auto start = steady_clock::now();
    for (;;) {
      std::erase_if(x_waiting, [](const Waiting& each) {
        if (!each.process.ended()) return false;
        fmt::print("{}: ended\n", each.name);
        return true;
      });
      const auto passed = std::chrono::floor<milliseconds>(steady_clock::now() - start);
      const auto left = patience - passed;
      if (x_waiting.empty() || left.count() <= 0) return 0;
      if (show)
        fmt::print(stderr, "\r\x1b[K{}: {} of {} have ended, waiting for {} ({} s) ", x_command,
                   x_all - x_waiting.size(), x_all, names(), passed.count() / 1000);
      const int signal = look(signals, std::min(left, show ? kProgressPeriod : left));
      if (show) fmt::print(stderr, "\r\x1b[K");
      if (signal != 0) return signal;
    }
  }

 private:
  int look(WaitSignals& signals, milliseconds patience) const {
    std::vector<pollfd> descriptors;
    for (const Waiting& each : x_waiting)
      descriptors.push_back({.fd = each.process.fd(), .events = POLLIN, .revents = 0});
    return signals.wait(descriptors, patience + milliseconds(1));
  }

  const std::string x_command;
  const size_t x_all;
  std::vector<Waiting> x_waiting;
};

// By force. A VM whose API does not answer gets signals: the second one ends it.
void end_by_force(const RunningVm& vm, const VmProcess& process) {
  if (post(vm, "/kill")) return;
  process.send(SIGTERM);
  process.send(SIGINT);
}

// Returns the exit code, having waited for all in `ending`.
int wait_for_forced(std::string_view command, EndWait& ending, WaitSignals& signals) {
  for (const bool last : {false, true}) {
    if (const int signal = ending.wait(signals, kKillPatience); signal != 0) {
      print_error(fmt::format("{}: interrupted; {} may still run", command, ending.names()));
      return 128 + signal;
    }
    if (ending.waiting().empty()) return 0;
    if (last) break;
    print_error(fmt::format("{}: {} did not end when told so: killed", command, ending.names()));
    for (const auto& each : ending.waiting()) each.process.send(SIGKILL);
  }
  print_error(
      fmt::format("{}: {} can't be killed: the kernel holds on to it", command, ending.names()));
  return kExitHostError;
}

// Opens all before anything is done to one.
Result<std::vector<VmProcess>> processes_of(const std::vector<RunningVm>& vms) {
  std::vector<VmProcess> processes;
  for (const RunningVm& vm : vms) {
    LETHE_TRY_ASSIGN(VmProcess process, VmProcess::open(vm));
    processes.push_back(std::move(process));
  }
  return processes;
}

int stop_vms(const std::vector<RunningVm>& vms, std::vector<VmProcess> processes,
             milliseconds timeout, bool force) {
  WaitSignals signals({SIGINT, SIGTERM, SIGHUP});
  EndWait ending("stop", vms);
  for (size_t i = 0; i < vms.size(); ++i) {
    // Where the API does not answer, SIGTERM presses the button too.
    if (!post(vms[i], "/power-button")) processes[i].send(SIGTERM);
    ending.add(vms[i], std::move(processes[i]));
  }
  if (const int signal = ending.wait(signals, timeout); signal != 0) {
    print_error(fmt::format("stop: interrupted; {} was asked to power off, and may still do so",
                            ending.names()));
    return 128 + signal;
  }
  if (ending.waiting().empty()) return 0;
  const std::string late = fmt::format("stop: {} did not power off within {} s", ending.names(),
                                       static_cast<double>(timeout.count()) / 1000);
  if (!force) {
    print_error(late + ": lethe stop --force, or lethe kill, ends it by force");
    return kExitHostError;
  }
  print_error(late + ": ended by force");
  for (const auto& each : ending.waiting())
    for (const RunningVm& vm : vms)
      if (vm.name == each.name) end_by_force(vm, each.process);
  return wait_for_forced("stop", ending, signals);
}

// pause and resume.
int command_post(const char* command, CommandLine& line, int argc, char** argv) {
  const VmSelection selection(line.app());
  if (const auto code = line.parse(argc, argv)) return *code;
  const auto vms = selection.find();
  if (!vms) return fail(command, vms.error());
  int code = 0;
  for (const RunningVm& vm : *vms) {
    const auto done = post(vm, fmt::format("/{}", command));
    if (done) continue;
    print_error(done.error().text);
    code = kExitHostError;
  }
  return code;
}

}  // namespace

int command_stop(int argc, char** argv) {
  CommandLine line("stop",
                   "Presses the power button of running VMs, and waits until they have ended.",
                   "  lethe stop web\n"
                   "  lethe stop web mail --timeout 60 --force\n"
                   "  lethe stop --all\n",
                   "0 all have ended; 1 one has not, or does not answer; 2 bad usage; "
                   "128 + N interrupted by signal N: the VMs may still power off.");
  const VmSelection selection(line.app());
  double timeout = 30;
  bool force = false;
  line.app()
      .add_option("-t,--timeout", timeout, "Seconds to wait for guests to power off (default: 30)")
      ->check(number_between(0, 86400));
  line.app().add_flag("-f,--force", force, "End those by force that have not powered off by then");
  if (const auto code = line.parse(argc, argv)) return *code;
  const auto vms = selection.find();
  if (!vms) return fail("stop", vms.error());
  auto processes = processes_of(*vms);
  if (!processes) return fail("stop", processes.error());
  return stop_vms(*vms, std::move(*processes), milliseconds(static_cast<int64_t>(timeout * 1000)),
                  force);
}

int command_kill(int argc, char** argv) {
  CommandLine line("kill",
                   "Ends running VMs by force, at once: their guests notice nothing, and lose what "
                   "they have not written to their disks.",
                   "  lethe kill web\n"
                   "  lethe kill --all\n",
                   "0 all have ended; 1 one has not; 2 bad usage; 128 + N interrupted by "
                   "signal N.");
  const VmSelection selection(line.app());
  if (const auto code = line.parse(argc, argv)) return *code;
  const auto vms = selection.find();
  if (!vms) return fail("kill", vms.error());
  auto processes = processes_of(*vms);
  if (!processes) return fail("kill", processes.error());
  WaitSignals signals({SIGINT, SIGTERM, SIGHUP});
  EndWait ending("kill", *vms);
  for (size_t i = 0; i < vms->size(); ++i) {
    end_by_force((*vms)[i], (*processes)[i]);
    ending.add((*vms)[i], std::move((*processes)[i]));
  }
  return wait_for_forced("kill", ending, signals);
}

int command_pause(int argc, char** argv) {
  CommandLine line(
      "pause",
      "Stops the processors of running VMs until `lethe resume`: they take no CPU "
      "time, and keep their memory.",
      "  lethe pause web\n"
      "  lethe pause --all\n",
      "0 all are paused, or were; 1 one does not run or does not answer; 2 bad usage.");
  return command_post("pause", line, argc, argv);
}

int command_resume(int argc, char** argv) {
  CommandLine line("resume", "Lets paused VMs go on.",
                   "  lethe resume web\n"
                   "  lethe resume --all\n",
                   "0 all run, or did; 1 one does not run or does not answer; 2 bad usage.");
  return command_post("resume", line, argc, argv);
}

}  // namespace lethe
