#include "vmm/check/check.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/event_loop.h"
#include "vmm/check/guest.h"
#include "vmm/check/guest_run.h"
#include "vmm/check/memory_budget.h"
#include "vmm/check/report.h"
#include "vmm/check/run_names.h"
#include "vmm/check/screen_files.h"
#include "vmm/check/verdict.h"
#include "vmm/cli/cli.h"
#include "vmm/config_schema.h"
#include "vmm/frontend_program.h"
#include "vmm/run.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kGrace{3};
constexpr size_t kTailLines = 20;

double seconds_of(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

class Checker {
 public:
  Checker(const CheckOptions& options, std::string shot_program, RunNames names,
          std::vector<Guest> guests)
      : x_options(options),
        x_shot_program(std::move(shot_program)),
        x_names(std::move(names)),
        x_budget(options.memory_bytes.value_or(available_memory())),
        x_guests(std::move(guests)),
        x_results(x_guests.size()),
        x_runs(x_guests.size()),
        x_screens(x_guests.size()),
        x_progress(options.json ? stderr : stdout, x_guests.size()) {
    for (size_t i = 0; i < x_guests.size(); ++i) x_results[i].name = x_guests[i].name;
  }

  [[nodiscard]] Result<> run();
  [[nodiscard]] const std::vector<GuestResult>& results() const { return x_results; }
  [[nodiscard]] bool interrupted() const { return x_interrupted; }
  Progress& progress() { return x_progress; }

 private:
  void start_more();
  void start(size_t index);
  void attempt_ended(size_t index, AttemptRecord record);
  void guest_ended(size_t index);
  void interrupt();
  AttemptSpec spec_of(size_t index) const;
  Result<std::optional<ScreenSpec>> screen_of(size_t index);
  std::optional<ExecSpec> exec_of(size_t index) const;
  [[nodiscard]] bool next_fits();
  std::string name_of(size_t index) const;
  std::string out_path(size_t index, const char* suffix) const;

  const CheckOptions& x_options;
  const std::string x_shot_program;
  const RunNames x_names;
  MemoryBudget x_budget;
  std::vector<Guest> x_guests;
  std::vector<GuestResult> x_results;                 // one a guest
  EventLoop x_loop;                                   // outlives the runs
  std::vector<std::unique_ptr<GuestRun>> x_runs;      // one a guest, while it runs
  std::vector<std::optional<ScreenFiles>> x_screens;  // likewise, if it has steps
  Progress x_progress;
  size_t x_next = 0;
  size_t x_running = 0;
  bool x_interrupted = false;
};

Result<> Checker::run() {
  LETHE_TRY_ASSIGN(const auto signals,
                   x_loop.watch_signals({SIGINT, SIGTERM, SIGHUP}, [this](int) { interrupt(); }));
  x_loop.post([this] { start_more(); });
  x_loop.run();
  return {};
}

void Checker::start_more() {
  while (!x_interrupted && x_running < x_options.jobs && x_next < x_guests.size()) {
    const std::string missing = missing_needs(x_guests[x_next].check);
    if (missing.empty() && !next_fits()) break;
    const size_t index = x_next++;
    if (missing.empty()) {
      ++x_running;
      x_budget.take(x_guests[index].memory_bytes);
      x_progress.started(x_guests[index].name);
      start(index);
      continue;
    }
    x_results[index].outcome = Outcome::kSkipped;
    x_results[index].reasons = {missing};
    x_progress.ended(x_results[index]);
  }
  if (x_running == 0) x_loop.stop();
}

// In the order of the list, so that a large guest is not put off for ever.
bool Checker::next_fits() {
  const Guest& guest = x_guests[x_next];
  if (!x_budget.fits(guest.memory_bytes)) return false;
  if (x_budget.too_large(guest.memory_bytes))
    x_progress.note(fmt::format(
        "NOTE {}: it may take {} MiB, more than the {} MiB {}: it runs alone, and may fail",
        printable(guest.name), guest.memory_bytes / kMiB, x_budget.bytes() / kMiB,
        x_options.memory_bytes ? "of --memory" : "that the host has available"));
  return true;
}

AttemptSpec Checker::spec_of(size_t index) const {
  const Guest& guest = x_guests[index];
  AttemptSpec spec;
  // A name of its own: two `lethe check` at once, or a VM that runs under the config's name, must
  // not be in each other's way.
  spec.command = {x_options.program.empty() ? "/proc/self/exe" : x_options.program,
                  "run",
                  guest.config_file,
                  "--non-interactive",
                  "--name",
                  name_of(index)};
  spec.deadline = std::chrono::nanoseconds(
      std::llround(guest.check.deadline_ms * 1e6 * x_options.timeout_scale));
  spec.grace = kGrace;
  if (x_options.out_dir.empty()) return spec;
  spec.log_file = out_path(index, ".log");
  return spec;
}

// What the guest runs as.
std::string Checker::name_of(size_t index) const { return x_names.of(x_guests[index].name); }

// A retry leaves the failed attempt's files alone: they are what people want.
std::string Checker::out_path(size_t index, const char* suffix) const {
  const size_t failed = x_results[index].failed_attempts.size();
  const std::string attempt = failed == 0 ? "" : fmt::format(".attempt-{}", failed + 1);
  return fmt::format("{}/{}{}{}", x_options.out_dir, x_guests[index].name, attempt, suffix);
}

// What looks at the guest's screen, if it is to be looked at.
Result<std::optional<ScreenSpec>> Checker::screen_of(size_t index) {
  const CheckConfig& check = x_guests[index].check;
  if (check.screen.empty()) return std::nullopt;
  LETHE_TRY_ASSIGN(ScreenFiles files,
                   ScreenFiles::create(x_options.out_dir.empty() ? "" : out_path(index, ".screen"),
                                       steps_json(check.screen, x_options.timeout_scale)));
  ScreenSpec spec{.program = x_shot_program,
                  .vm_name = name_of(index),
                  .steps_file = files.steps_file(),
                  .out_dir = files.directory(),
                  .ends_guest = check.ends_with_screen() || check.ends_with_exec()};
  x_screens[index].emplace(std::move(files));
  return spec;
}

// What is run in the guest, if anything is.
std::optional<ExecSpec> Checker::exec_of(size_t index) const {
  const Guest& guest = x_guests[index];
  if (guest.exec.steps.empty()) return std::nullopt;
  ExecSpec spec{.plan = &guest.exec,
                .vm_name = name_of(index),
                .timeout_scale = x_options.timeout_scale,
                .log_file = {},
                .artifacts_dir = {},
                .ends_guest = guest.check.ends_with_screen() || guest.check.ends_with_exec()};
  if (x_options.out_dir.empty()) return spec;
  spec.log_file = out_path(index, ".exec.log");
  spec.artifacts_dir = out_path(index, ".artifacts");
  return spec;
}

void Checker::start(size_t index) {
  auto screen = screen_of(index);
  if (!screen) {
    AttemptRecord record;
    record.start_error = screen.error().text;
    x_loop.post([this, index, record] { attempt_ended(index, record); });
    return;
  }
  x_runs[index] = std::make_unique<GuestRun>(
      x_loop, spec_of(index), StepSpecs{std::move(*screen), exec_of(index)},
      [this, index](AttemptRecord record) { attempt_ended(index, std::move(record)); });
}

void Checker::attempt_ended(size_t index, AttemptRecord record) {
  x_runs[index].reset();
  x_screens[index].reset();
  GuestResult& result = x_results[index];
  result.seconds += seconds_of(record.duration);
  result.reasons = judge_attempt(x_guests[index], record);
  if (result.reasons.empty()) {
    result.outcome = Outcome::kPassed;
    return guest_ended(index);
  }
  if (record.interrupted) {
    result.outcome = Outcome::kInterrupted;
    return guest_ended(index);
  }
  const size_t attempt = result.failed_attempts.size() + 1;
  if (attempt <= x_options.retries && !x_interrupted) {
    x_progress.note(fmt::format("RETRY {}: attempt {} failed: {}", printable(result.name), attempt,
                                result.reasons[0]));
    result.failed_attempts.push_back(result.reasons[0]);
    return start(index);
  }
  result.outcome = Outcome::kFailed;
  result.tail = tail_of(record.console, kTailLines);
  result.messages_tail = tail_of(record.messages, kTailLines);
  result.step_output = record.step_output;
  guest_ended(index);
}

void Checker::guest_ended(size_t index) {
  x_progress.ended(x_results[index]);
  x_budget.give_back(x_guests[index].memory_bytes);
  --x_running;
  start_more();
}

void Checker::interrupt() {
  if (!x_interrupted) x_progress.note("interrupted: ending the guests that run");
  x_interrupted = true;
  for (const auto& run : x_runs)
    if (run) run->interrupt();
}

// The console logs' directory, made if need be, and cleared of nothing: names are the guests'.
Result<> make_out_dir(const std::string& path) {
  for (size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string part = path.substr(0, slash);
    if (::mkdir(part.c_str(), 0777) != 0 && errno != EEXIST)
      return host_error("--out '{}': {}", printable(part), errno_text(errno));
    if (slash == std::string::npos) break;
  }
  if (::access(path.c_str(), W_OK | X_OK) != 0)
    return host_error("--out '{}': {}", printable(path), errno_text(errno));
  return {};
}

Result<int> check(const CheckOptions& options, GuestList list) {
  // First, so that the report may go into it.
  if (!options.out_dir.empty()) LETHE_TRY(make_out_dir(options.out_dir));
  std::optional<ReportFile> junit;
  if (!options.junit_file.empty()) {
    LETHE_TRY_ASSIGN(ReportFile file, ReportFile::open(options.junit_file));
    junit.emplace(std::move(file));
  }

  std::vector<Guest> guests = take_shard(std::move(list.guests), options.shard, options.shards);
  std::string shot_program = options.shot_program;
  const bool screens = std::any_of(guests.begin(), guests.end(),
                                   [](const Guest& guest) { return !guest.check.screen.empty(); });
  if (screens && shot_program.empty()) {
    LETHE_TRY_ASSIGN(shot_program, find_frontend("lethe-shot"));
  }
  LETHE_TRY_ASSIGN(RunNames names, RunNames::create());
  const auto started_at = Clock::now();
  const bool artifacts = std::any_of(guests.begin(), guests.end(), [](const Guest& guest) {
    return !guest.check.artifacts.empty();
  });
  Checker checker(options, std::move(shot_program), std::move(names), std::move(guests));
  for (const std::string& note : list.notes) checker.progress().note(note);
  if (artifacts && options.out_dir.empty())
    checker.progress().note("NOTE artifacts are not fetched: give --out DIR to keep them");
  LETHE_TRY(checker.run());
  const double seconds = seconds_of(Clock::now() - started_at);
  checker.progress().summary(checker.results(), seconds);
  if (options.json) std::fputs(results_json(checker.results()).c_str(), stdout);
  if (junit) LETHE_TRY(junit->write(junit_xml(checker.results(), seconds)));
  if (checker.interrupted()) return kExitInterrupted;
  return count_results(checker.results()).failed > 0 ? 1 : 0;
}

}  // namespace

int run_checks(const CheckOptions& options) {
  std::vector<std::string> errors;
  GuestList list = collect_guests(options.inputs, errors);
  for (const std::string& error : errors) print_error(error);
  if (!errors.empty()) return kExitUsage;
  const auto code = check(options, std::move(list));
  if (code) return *code;
  print_error(code.error().text);
  return exit_code_of(code.error().kind);
}

}  // namespace lethe
