#include "vmm/check/guest_run.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "vmm/check/verdict.h"
#include "vmm/config_schema.h"
#include "vmm/run_dir.h"

namespace lethe {
namespace {

constexpr std::chrono::milliseconds kLookEvery{20};

// printable() would cut it; paths of pictures come last.
std::string printable_line(std::string_view line) {
  std::string shown;
  for (; !line.empty(); line.remove_prefix(std::min(line.size(), kPrintableBytesMax)))
    shown += printable(line.substr(0, kPrintableBytesMax));
  return shown;
}

// Why lethe-shot ended so, in its own last words; empty if all steps were through.
std::string screen_error_of(const AttemptRecord& record) {
  if (!record.start_error.empty()) return record.start_error;
  if (WIFEXITED(record.wait_status) && WEXITSTATUS(record.wait_status) == 0) return {};
  std::string line = tail_of(record.messages, 1);
  while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
  constexpr std::string_view kOwnName = "lethe-shot: ";
  if (line.starts_with(kOwnName)) line.erase(0, kOwnName.size());
  if (!line.empty()) return printable_line(line);
  if (WIFSIGNALED(record.wait_status))
    return "lethe-shot was killed by signal " + std::to_string(WTERMSIG(record.wait_status));
  return "lethe-shot ended with exit code " + std::to_string(WEXITSTATUS(record.wait_status));
}

}  // namespace

GuestRun::GuestRun(EventLoop& loop, AttemptSpec spec, StepSpecs steps,
                   std::function<void(AttemptRecord)> done)
    : x_loop(loop),
      x_specs(std::move(steps)),
      x_deadline(spec.deadline),
      x_done(std::move(done)),
      x_screen_through(!x_specs.screen),
      x_exec_through(!x_specs.exec) {
  x_guest = std::make_unique<Attempt>(
      loop, std::move(spec), [this](AttemptRecord record) { guest_ended(std::move(record)); });
  if (steps_through()) return;
  x_patience_timer = loop.make_timer([this] {
    if (x_screen && !x_screen_through) x_screen->stop_child();
    if (x_exec) x_exec->give_up();
  });
  x_look_timer = loop.make_timer([this] { look_for_sockets(); });
  x_look_timer->start(kLookEvery);
}

void GuestRun::interrupt() {
  if (!x_record) x_guest->interrupt();
  if (x_screen && !x_screen_through) x_screen->stop_child();
}

void GuestRun::look_for_sockets() {
  const std::string& name = x_specs.screen ? x_specs.screen->vm_name : x_specs.exec->vm_name;
  // Others' guests wait for this thread: it looks again instead of waiting.
  if (const auto vm = find_running_vm(name, RunDirRoots::of_this_process(), {})) {
    const auto there = [](const std::string& path) { return ::access(path.c_str(), F_OK) == 0; };
    if (!x_screen_through && !x_screen && there(vm->path + "/" + kGuiSocketName)) start_screen();
    if (!x_exec_through && !x_exec && there(vsock_of(*vm)))
      x_exec =
          std::make_unique<ExecSteps>(x_loop, *x_specs.exec, vsock_of(*vm),
                                      [this](ExecResult result) { exec_ended(std::move(result)); });
  }
  if ((!x_screen_through && !x_screen) || (!x_exec_through && !x_exec))
    x_look_timer->start(kLookEvery);
}

std::string GuestRun::vsock_of(const RunningVm& vm) const {
  const std::string& path = x_specs.exec->plan->socket;
  return path.empty() ? vm.path + "/" + kVsockSocketName : path;
}

void GuestRun::start_screen() {
  x_screen = std::make_unique<Attempt>(
      x_loop,
      // The guest's own deadline comes first.
      AttemptSpec{.command = {x_specs.screen->program, x_specs.screen->vm_name, "--steps",
                              x_specs.screen->steps_file, "--out", x_specs.screen->out_dir},
                  .deadline = x_deadline,
                  .grace = std::chrono::seconds(1),
                  .log_file = {}},
      [this](const AttemptRecord& record) { screen_ended(record); });
}

void GuestRun::screen_ended(const AttemptRecord& record) {
  x_screen_through = true;
  x_screen_error = screen_error_of(record);
  steps_ended(!x_screen_error.empty(), x_specs.screen->ends_guest);
}

void GuestRun::exec_ended(ExecResult result) {
  x_exec_through = true;
  x_exec_result = std::move(result);
  x_exec.reset();
  steps_ended(!x_exec_result.errors.empty(), x_specs.exec->ends_guest);
}

void GuestRun::steps_ended(bool failed, bool ends_guest) {
  if (!x_record && (failed || (ends_guest && steps_through()))) {
    x_ended_for_steps = true;
    x_guest->stop_child();
  }
  finish_if_all_ended();
}

void GuestRun::guest_ended(AttemptRecord record) {
  x_record = std::move(record);
  if (x_look_timer) x_look_timer->cancel();
  if (!x_screen_through && !x_screen) {
    x_screen_through = true;
    x_screen_error = "the guest ended before its screen was there";
  }
  if (!x_exec_through && !x_exec) {
    x_exec_through = true;
    x_exec_result.errors = {"the guest ended before its vsock was there"};
  }
  if (x_exec) x_exec->guest_ended();
  if (!steps_through()) x_patience_timer->start(kPatience);
  finish_if_all_ended();
}

void GuestRun::finish_if_all_ended() {
  if (!x_record || !steps_through()) return;
  if (!x_screen_error.empty()) x_record->step_errors.push_back("screen: " + x_screen_error);
  for (const std::string& error : x_exec_result.errors)
    x_record->step_errors.push_back("exec: " + error);
  x_record->step_output = std::move(x_exec_result.output);
  x_record->ended_for_steps = x_ended_for_steps;
  const auto done = std::move(x_done);
  done(std::move(*x_record));
}

}  // namespace lethe
