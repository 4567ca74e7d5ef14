// One run of a guest with the steps on its screen: two children, `lethe run` and `lethe-shot`.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "vmm/check/attempt.h"

namespace lethe {

struct ScreenSpec {
  std::string program;      // lethe-shot
  std::string vm_name;      // what the guest runs as
  std::string steps_file;   // JSON
  std::string out_dir;      // gets the pictures
  bool ends_guest = false;  // when the steps are through
};

// Threading: the loop's thread.
class GuestRun {
 public:
  // Without a screen it is as an Attempt. lethe-shot is started when the VM's GUI socket is there.
  // When a step has failed, the guest is ended; when the guest has ended, lethe-shot has
  // kScreenPatience to notice. `done` is called once, from the loop, when both have ended; it may
  // destroy this.
  GuestRun(EventLoop& loop, AttemptSpec spec, std::optional<ScreenSpec> screen,
           std::function<void(AttemptRecord)> done);
  void interrupt();  // as Attempt's

  static constexpr std::chrono::seconds kScreenPatience{3};

 private:
  void look_for_screen();
  void start_screen();
  void screen_ended(const AttemptRecord& record);
  void guest_ended(AttemptRecord record);
  void finish_if_both_ended();

  EventLoop& x_loop;
  const std::optional<ScreenSpec> x_screen_spec;
  const std::chrono::nanoseconds x_deadline;
  std::function<void(AttemptRecord)> x_done;
  std::optional<AttemptRecord> x_record;  // of the guest, once it has ended
  std::string x_screen_error;
  bool x_screen_through = false;  // or never to be started
  bool x_ended_for_screen = false;
  std::unique_ptr<EventLoop::Timer> x_look_timer;
  std::unique_ptr<EventLoop::Timer> x_patience_timer;
  std::unique_ptr<Attempt> x_screen;
  std::unique_ptr<Attempt> x_guest;
};

}  // namespace lethe
