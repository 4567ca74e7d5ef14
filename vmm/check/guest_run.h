// One run of a guest with its steps: the child `lethe run`; for the steps on its screen another
// child, `lethe-shot`; for commands in the guest a client of its agent.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "vmm/check/attempt.h"
#include "vmm/check/exec_steps.h"
#include "vmm/run_dir.h"

namespace lethe {

struct ScreenSpec {
  std::string program;      // lethe-shot
  std::string vm_name;      // what the guest runs as
  std::string steps_file;   // JSON
  std::string out_dir;      // gets the pictures
  bool ends_guest = false;  // when the steps are through
};

struct StepSpecs {
  std::optional<ScreenSpec> screen{};
  std::optional<ExecSpec> exec{};
};

// Threading: the loop's thread.
class GuestRun {
 public:
  // Without steps it is as an Attempt. lethe-shot is started when the VM's GUI socket is there, the
  // agent is asked when its vsock socket is. When a step has failed, the guest is ended (after a
  // command's, with its artifacts); likewise when all steps are through, if they end it. When the
  // guest has ended, the steps have kPatience to notice. `done` is called once, from the loop, when
  // all have ended; it may destroy this.
  GuestRun(EventLoop& loop, AttemptSpec spec, StepSpecs steps,
           std::function<void(AttemptRecord)> done);
  void interrupt();  // as Attempt's

  static constexpr std::chrono::seconds kPatience{3};

 private:
  void look_for_sockets();
  [[nodiscard]] std::string vsock_of(const RunningVm& vm) const;
  void start_screen();
  void screen_ended(const AttemptRecord& record);
  void exec_ended(ExecResult result);
  void steps_ended(bool failed, bool ends_guest);
  void guest_ended(AttemptRecord record);
  void finish_if_all_ended();
  [[nodiscard]] bool steps_through() const { return x_screen_through && x_exec_through; }

  EventLoop& x_loop;
  const StepSpecs x_specs;
  const std::chrono::nanoseconds x_deadline;
  std::function<void(AttemptRecord)> x_done;
  std::optional<AttemptRecord> x_record;  // of the guest, once it has ended
  std::string x_screen_error;
  ExecResult x_exec_result;
  bool x_screen_through;  // or never to be started
  bool x_exec_through;
  bool x_ended_for_steps = false;
  std::unique_ptr<EventLoop::Timer> x_look_timer;
  std::unique_ptr<EventLoop::Timer> x_patience_timer;
  std::unique_ptr<ExecSteps> x_exec;
  std::unique_ptr<Attempt> x_screen;
  std::unique_ptr<Attempt> x_guest;
};

}  // namespace lethe
