// What `lethe check` shows: lines while it runs, a summary, a JUnit file.
#pragma once

#include <cstdio>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

enum class Outcome : uint8_t { kPassed, kFailed, kSkipped, kInterrupted, kNotRun };

struct GuestResult {
  std::string name;
  Outcome outcome = Outcome::kNotRun;
  std::vector<std::string> reasons{};  // why it failed or was skipped
  // Of a flaky guest, one that passed after failing: what the failed attempts' first reasons were.
  std::vector<std::string> failed_attempts{};
  double seconds = 0;           // all attempts
  std::string tail{};           // last lines of the console, of a failure
  std::string messages_tail{};  // and of lethe's own messages
  std::string step_output{};    // last lines of a command in the guest that failed
};

struct Totals {
  size_t passed = 0;
  size_t flaky = 0;  // of the passed ones
  size_t failed = 0;
  size_t skipped = 0;
  size_t interrupted = 0;  // interrupted or not run
};

[[nodiscard]] Totals count_results(const std::vector<GuestResult>& results);

// One line a guest; on a terminal in colour, and with a line of progress below.
class Progress {
 public:
  // Writes to `out`, which it does not own.
  Progress(std::FILE* out, size_t guests);
  ~Progress();
  void note(std::string_view line);
  void started(const std::string& name);
  void ended(const GuestResult& result);
  void summary(const std::vector<GuestResult>& results, double seconds);

 private:
  void erase_status();
  void show_status();
  std::FILE* x_out;
  bool x_terminal;
  size_t x_guests;
  size_t x_ended = 0;
  std::set<std::string> x_running;
};

// JUnit XML, in the form Jenkins, GitLab and GitHub's reporters read.
[[nodiscard]] std::string junit_xml(const std::vector<GuestResult>& results, double seconds);

// A JSON array with a newline: an object a guest.
[[nodiscard]] std::string results_json(const std::vector<GuestResult>& results);

// The text as XML 1.0 character data: markup escaped, bytes XML has no place for as \xNN.
[[nodiscard]] std::string xml_escape(std::string_view text);

// A report file, opened at the start (so that a bad path is known before an hour of guests) and
// written at the end. Errors name the file.
class ReportFile {
 public:
  [[nodiscard]] static Result<ReportFile> open(const std::string& path);
  [[nodiscard]] Result<> write(std::string_view text);

 private:
  ReportFile(std::string path, UniqueFd fd) : x_path(std::move(path)), x_fd(std::move(fd)) {}
  std::string x_path;
  UniqueFd x_fd;
};

}  // namespace lethe
