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

// printable() cuts at 200 bytes; paths of pictures come last.
std::string printable_line(std::string_view line) {
  constexpr size_t kPiece = 200;
  std::string shown;
  for (; !line.empty(); line.remove_prefix(std::min(line.size(), kPiece)))
    shown += printable(line.substr(0, kPiece));
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

GuestRun::GuestRun(EventLoop& loop, AttemptSpec spec, std::optional<ScreenSpec> screen,
                   std::function<void(AttemptRecord)> done)
    : x_loop(loop),
      x_screen_spec(std::move(screen)),
      x_deadline(spec.deadline),
      x_done(std::move(done)),
      x_screen_through(!x_screen_spec) {
  x_guest = std::make_unique<Attempt>(
      loop, std::move(spec), [this](AttemptRecord record) { guest_ended(std::move(record)); });
  if (!x_screen_spec) return;
  x_patience_timer = loop.make_timer([this] {
    if (x_screen) x_screen->stop_child();
  });
  x_look_timer = loop.make_timer([this] { look_for_screen(); });
  x_look_timer->start(kLookEvery);
}

void GuestRun::interrupt() {
  if (!x_record) x_guest->interrupt();
  if (x_screen && !x_screen_through) x_screen->stop_child();
}

void GuestRun::look_for_screen() {
  const auto vm = find_running_vm(x_screen_spec->vm_name);
  if (vm && ::access((vm->path + "/" + kGuiSocketName).c_str(), F_OK) == 0) return start_screen();
  x_look_timer->start(kLookEvery);
}

void GuestRun::start_screen() {
  x_screen = std::make_unique<Attempt>(
      x_loop,
      // The guest's own deadline comes first.
      AttemptSpec{.command = {x_screen_spec->program, x_screen_spec->vm_name, "--steps",
                              x_screen_spec->steps_file, "--out", x_screen_spec->out_dir},
                  .deadline = x_deadline,
                  .grace = std::chrono::seconds(1),
                  .log_file = {}},
      [this](const AttemptRecord& record) { screen_ended(record); });
}

void GuestRun::screen_ended(const AttemptRecord& record) {
  x_screen_through = true;
  x_screen_error = screen_error_of(record);
  if (!x_record && (!x_screen_error.empty() || x_screen_spec->ends_guest)) {
    x_ended_for_screen = true;
    x_guest->stop_child();
  }
  finish_if_both_ended();
}

void GuestRun::guest_ended(AttemptRecord record) {
  x_record = std::move(record);
  if (x_look_timer) x_look_timer->cancel();
  if (!x_screen_through && !x_screen) {
    x_screen_through = true;
    x_screen_error = "the guest ended before its screen was there";
  }
  if (!x_screen_through) x_patience_timer->start(kScreenPatience);
  finish_if_both_ended();
}

void GuestRun::finish_if_both_ended() {
  if (!x_record || !x_screen_through) return;
  x_record->screen_error = std::move(x_screen_error);
  x_record->ended_for_screen = x_ended_for_screen;
  const auto done = std::move(x_done);
  done(std::move(*x_record));
}

}  // namespace lethe
