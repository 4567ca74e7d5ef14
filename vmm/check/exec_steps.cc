#include "vmm/check/exec_steps.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <filesystem>

#include "base/file_bytes.h"
#include "base/unique_fd.h"
#include "vmm/check/verdict.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

using How = ExecEnd::How;
using std::chrono::milliseconds;

// The first command waits for the agent as long as the guest may run; the others for one that is
// started anew.
constexpr milliseconds kFirstPatience{86'400'000};
constexpr milliseconds kPatience{10'000};
constexpr milliseconds kFetchTimeout{120'000};  // an artifact
constexpr size_t kTailLines = 10;
constexpr size_t kErrorsMax = 16;
constexpr size_t kFetchErrorMax = 16 << 10;  // bytes that are kept of tar's own errors

// In its C locale. The last is of what it passes over.
constexpr std::array<std::string_view, 4> kTarWarnings{"file changed as we read it",
                                                       "File removed before we read it",
                                                       "padding with zeros", "socket ignored"};

std::string words_of(const ExecStep& step) {
  const std::string words =
      step.shell.empty() ? fmt::format("{}", fmt::join(step.run, " ")) : step.shell;
  constexpr size_t kShown = 60;
  std::string line = words.substr(0, words.find('\n'));
  const bool cut = line.size() < words.size() || line.size() > kShown;
  return printable(line.substr(0, kShown)) + (cut ? "..." : "");
}

// "; it says: 'last line'", of what it printed, errors first.
std::string last_words(const std::string& err, const std::string& out) {
  for (const auto& [text, name] : {std::pair(&err, "stderr"), std::pair(&out, "stdout")}) {
    std::string line = tail_of(*text, 1);
    while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
    if (!line.empty()) return fmt::format("; its {} ends with '{}'", name, printable(line));
  }
  return "; it printed nothing";
}

// Whether tar only warns. GNU's exits with 1 when a file changed while it was read, as logs do, and
// the archive is whole all the same; busybox's exits so for errors too.
bool only_warns(const ExecEnd& end, std::string_view err) {
  if (end.how != How::kExited || end.value != 1) return false;
  size_t lines = 0;
  for (size_t size = 0; (size = err.find('\n')) != err.npos; err.remove_prefix(size + 1), ++lines)
    if (std::none_of(kTarWarnings.begin(), kTarWarnings.end(), [&](std::string_view warning) {
          return err.substr(0, size).find(warning) != err.npos;
        }))
      return false;
  return lines > 0;
}

milliseconds scaled(milliseconds time, double scale) {
  constexpr double kMax = 86'400'000;
  return milliseconds(
      std::llround(std::clamp(static_cast<double>(time.count()) * scale, 1.0, kMax)));
}

// A log that can't be written loses nothing of the verdict.
void append_to(const std::string& file, std::string_view text) {
  if (file.empty()) return;
  const UniqueFd log(::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (log.valid()) (void)write_all(log.get(), text);
}

}  // namespace

Result<ExecPlan> plan_exec(const VmConfig& config, const std::string& file) {
  const CheckConfig& check = config.check;
  ExecPlan plan;
  plan.socket = config.vsock.path;
  plan.steps = check.exec;
  plan.port = check.agent_port;
  plan.artifacts = check.artifacts;
  plan.artifacts_max = check.artifacts_max;
  for (const ExecStep& step : check.exec) {
    LETHE_TRY_ASSIGN(LinePatterns out,
                     compile_patterns({"check.exec.stdout_match", step.stdout_match,
                                       "check.exec.stdout_not_match", step.stdout_not_match},
                                      file));
    LETHE_TRY_ASSIGN(LinePatterns err,
                     compile_patterns({"check.exec.stderr_match", step.stderr_match,
                                       "check.exec.stderr_not_match", step.stderr_not_match},
                                      file));
    plan.stdout_patterns.push_back(std::move(out));
    plan.stderr_patterns.push_back(std::move(err));
  }
  return plan;
}

ExecSteps::ExecSteps(EventLoop& loop, const ExecSpec& spec, std::string socket,
                     std::function<void(ExecResult)> done)
    : x_loop(loop), x_spec(spec), x_socket(std::move(socket)), x_done(std::move(done)) {
  if (!spec.log_file.empty()) (void)::unlink(spec.log_file.c_str());
  run_step();
}

void ExecSteps::run_step() {
  const ExecStep& step = x_spec.plan->steps[x_step];
  x_started = x_too_much = false;
  x_input_at = 0;
  x_out.clear();
  x_err.clear();
  ExecRequest request{
      .run = step.shell.empty() ? step.run : std::vector<std::string>{"/bin/sh", "-c", step.shell},
      .env = step.env,
      .cwd = step.cwd,
      .takes_stdin = !step.input.empty(),
      .timeout = scaled(milliseconds(step.timeout_ms), x_spec.timeout_scale)};
  x_client = std::make_unique<ExecClient>(
      x_loop,
      ExecClient::Options{
          .socket = x_socket,
          .port = x_spec.plan->port,
          .patience = x_step == 0 ? kFirstPatience : scaled(kPatience, x_spec.timeout_scale)},
      request,
      ExecClient::Handlers{
          .started = [this] { x_started = true; },
          .output = [this](std::string_view bytes, bool is_error) { keep(bytes, is_error); },
          .wants_input = [this] { give_input(); },
          .ended = [this](const ExecEnd& end) { step_ended(end); }});
}

// Piece by piece; then the end of it.
void ExecSteps::give_input() {
  const std::string& input = x_spec.plan->steps[x_step].input;
  if (x_input_at > input.size()) return;
  const std::string_view piece = std::string_view(input).substr(x_input_at, exec::kFrameBytesMax);
  x_input_at += piece.empty() ? 1 : piece.size();
  x_client->send_input(piece);
}

void ExecSteps::keep(std::string_view bytes, bool is_error) {
  std::string& text = is_error ? x_err : x_out;
  const uint64_t most = x_spec.plan->steps[x_step].output_max;
  text.append(bytes.substr(0, most - text.size()));
  if (text.size() < most || x_too_much) return;
  x_too_much = true;
  x_client->end({How::kLost, 0, ""});
}

// The last command may power the guest off.
bool ExecSteps::may_take_guest_along() const {
  return x_started && !x_too_much && !x_spec.ends_guest && x_spec.plan->artifacts.empty() &&
         x_step + 1 == x_spec.plan->steps.size();
}

void ExecSteps::step_ended(const ExecEnd& end) {
  const ExecStep& step = x_spec.plan->steps[x_step];
  x_client.reset();
  append_to(x_spec.log_file,
            fmt::format("$ {}\n{}{}{}--- {}\n", words_of(step), x_out,
                        x_err.empty() ? "" : "--- stderr:\n", x_err, describe(end)));
  std::vector<std::string> wrong;
  if (x_too_much) {
    wrong.push_back(fmt::format("printed {} or more (output_max)", format_size(step.output_max)));
  } else if (end.how == How::kTimedOut) {
    wrong.push_back(fmt::format(
        "timeout: still running after {:.1f} s{}",
        std::chrono::duration<double>(scaled(milliseconds(step.timeout_ms), x_spec.timeout_scale))
            .count(),
        last_words(x_err, x_out)));
  } else if (end.how == How::kLost && may_take_guest_along()) {
    // How the guest ended, the verdict judges.
  } else if (end.how != How::kExited || end.value != step.expect_exit) {
    wrong.push_back(fmt::format("{}, expected exit code {}{}", describe(end), step.expect_exit,
                                x_started ? last_words(x_err, x_out) : ""));
  }
  if (wrong.empty()) {
    wrong = x_spec.plan->stdout_patterns[x_step].judge(x_out, "stdout");
    for (std::string& more : x_spec.plan->stderr_patterns[x_step].judge(x_err, "stderr"))
      wrong.push_back(std::move(more));
    if (!wrong.empty()) wrong.back() += last_words(x_err, x_out);
  }
  if (!wrong.empty())
    fail(fmt::format("step {} of {} '{}': {}", x_step + 1, x_spec.plan->steps.size(),
                     words_of(step), fmt::join(wrong, "; ")));
  const bool agent_is_gone = end.how == How::kNoAgent || end.how == How::kNonsense || x_guest_ended;
  if (wrong.empty() && ++x_step < x_spec.plan->steps.size() && !x_guest_ended) return run_step();
  if (wrong.empty() && x_step < x_spec.plan->steps.size())
    fail(
        fmt::format("the guest ended before step {} of {}", x_step + 1, x_spec.plan->steps.size()));
  if (agent_is_gone || x_spec.artifacts_dir.empty()) return finish();
  fetch_next();
}

// The tail of what the failed step printed, for the report.
void ExecSteps::fail(const std::string& what) {
  if (x_result.errors.size() >= kErrorsMax) return;
  x_result.errors.push_back(what);
  if (!x_result.output.empty()) return;
  for (const auto& [text, name] : {std::pair(&x_out, "stdout"), std::pair(&x_err, "stderr")})
    if (!text->empty())
      x_result.output += fmt::format("{}, last lines:\n{}", name, tail_of(*text, kTailLines));
}

void ExecSteps::fetch_next() {
  if (x_artifact == x_spec.plan->artifacts.size() || x_guest_ended) return finish();
  const std::string path = safe_artifact_path(x_spec.plan->artifacts[x_artifact]);
  const uint64_t left = x_spec.plan->artifacts_max - x_fetched;
  std::error_code error;
  if (x_artifact == 0) std::filesystem::remove_all(x_spec.artifacts_dir, error);
  if (::mkdir(x_spec.artifacts_dir.c_str(), 0777) != 0 && errno != EEXIST) {
    fail(fmt::format("artifacts: '{}': {}", printable(x_spec.artifacts_dir), errno_text(errno)));
    return finish();
  }
  auto writer = ArtifactWriter::create(x_spec.artifacts_dir, path, left);
  if (!writer) {
    fail("artifacts: " + writer.error().text);
    return finish();
  }
  x_writer = std::move(*writer);
  x_err.clear();
  // -h: what links point to, since the host makes none. "./": no path is an option.
  x_client = std::make_unique<ExecClient>(
      x_loop,
      ExecClient::Options{.socket = x_socket,
                          .port = x_spec.plan->port,
                          .patience = scaled(kPatience, x_spec.timeout_scale)},
      ExecRequest{.run = {"tar", "-chf", "-", "-C", "/", "./" + path},
                  .env = {"LC_ALL=C"},
                  .timeout = scaled(kFetchTimeout, x_spec.timeout_scale)},
      ExecClient::Handlers{.output =
                               [this](std::string_view bytes, bool is_error) {
                                 if (is_error)
                                   x_err.append(bytes.substr(
                                       0, kFetchErrorMax - std::min(kFetchErrorMax, x_err.size())));
                                 else if (!x_writer->feed(bytes))
                                   x_client->end({How::kLost, 0, ""});
                               },
                           .ended = [this](const ExecEnd& end) { fetch_ended(end); }});
}

void ExecSteps::fetch_ended(const ExecEnd& end) {
  x_client.reset();
  const std::string& path = x_spec.plan->artifacts[x_artifact++];
  std::string wrong = x_writer->finish();
  x_fetched += x_writer->bytes();
  const bool warned = wrong.empty() && only_warns(end, x_err);
  append_to(x_spec.log_file,
            fmt::format("artifact {}: {} bytes{}{}\n", printable(path), x_writer->bytes(),
                        x_writer->passed_over() == 0
                            ? ""
                            : fmt::format(", {} entries passed over: neither file nor directory",
                                          x_writer->passed_over()),
                        warned ? ", and tar warned" + last_words(x_err, {}) : ""));
  x_writer.reset();
  // tar's own words say more than an archive that is cut.
  if (end.how == How::kExited && end.value != 0 && !warned)
    wrong = fmt::format("{}{}", describe(end), last_words(x_err, {}));
  else if (wrong.empty() && end.how != How::kExited)
    wrong = describe(end);
  if (!wrong.empty()) fail(fmt::format("artifact '{}': {}", printable(path), wrong));
  fetch_next();
}

void ExecSteps::guest_ended() {
  x_guest_ended = true;
  // A command that runs hears of it by its connection's end, after what was printed before.
  if (x_client && !x_started && !x_writer) give_up();
}

void ExecSteps::give_up() {
  x_guest_ended = true;
  if (x_client) x_client->end({How::kNoAgent, 0, "the guest has ended"});
}

void ExecSteps::finish() {
  x_loop.post([this, alive = x_alive] {
    if (!*alive) return;
    const auto done = std::move(x_done);
    done(std::move(x_result));
  });
}

}  // namespace lethe
