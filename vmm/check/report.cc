#include "vmm/check/report.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file_bytes.h"
#include "vmm/api/http_server.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr size_t kStatusColumns = 78;

struct Style {
  const char* word;
  const char* colour;
};

Style style_of(Outcome outcome, bool flaky) {
  switch (outcome) {
    case Outcome::kPassed:
      return flaky ? Style{"FLAKY", "\033[33m"} : Style{"PASS", "\033[32m"};
    case Outcome::kFailed:
      return {"FAIL", "\033[31m"};
    case Outcome::kSkipped:
      return {"SKIP", "\033[33m"};
    case Outcome::kInterrupted:
      return {"STOP", "\033[31m"};
    case Outcome::kNotRun:
      break;
  }
  return {"NOT RUN", "\033[33m"};
}

void print_indented(std::FILE* out, const char* title, std::string_view text) {
  if (text.empty()) return;
  fmt::print(out, "      {}\n", title);
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.ends_with('\r')) line.remove_suffix(1);
    fmt::print(out, "      | {}\n", printable(line));
  }
}

}  // namespace

Totals count_results(const std::vector<GuestResult>& results) {
  Totals totals;
  for (const GuestResult& result : results) {
    switch (result.outcome) {
      case Outcome::kPassed:
        ++totals.passed;
        if (!result.failed_attempts.empty()) ++totals.flaky;
        break;
      case Outcome::kFailed:
        ++totals.failed;
        break;
      case Outcome::kSkipped:
        ++totals.skipped;
        break;
      case Outcome::kInterrupted:
      case Outcome::kNotRun:
        ++totals.interrupted;
        break;
    }
  }
  return totals;
}

Progress::Progress(std::FILE* out, size_t guests)
    : x_out(out), x_terminal(::isatty(::fileno(out)) == 1), x_guests(guests) {}

Progress::~Progress() { erase_status(); }

void Progress::erase_status() {
  if (x_terminal) std::fputs("\r\033[K", x_out);
}

void Progress::show_status() {
  if (x_terminal && !x_running.empty()) {
    std::string names;
    for (const std::string& name : x_running) names += " " + printable(name);
    const std::string line = fmt::format("[{}/{}]{}", x_ended, x_guests, names);
    std::fputs(line.substr(0, kStatusColumns).c_str(), x_out);
  }
  std::fflush(x_out);
}

void Progress::note(std::string_view line) {
  erase_status();
  fmt::print(x_out, "{}\n", line);
  show_status();
}

void Progress::started(const std::string& name) {
  x_running.insert(name);
  erase_status();
  show_status();
}

void Progress::ended(const GuestResult& result) {
  erase_status();
  x_running.erase(result.name);
  ++x_ended;
  const Style style = style_of(result.outcome, !result.failed_attempts.empty());
  fmt::print(x_out, "{}{:<5}{} {}", x_terminal ? style.colour : "", style.word,
             x_terminal ? "\033[0m" : "", printable(result.name));
  if (result.outcome == Outcome::kPassed || result.outcome == Outcome::kFailed)
    fmt::print(x_out, " ({:.1f} s)", result.seconds);
  for (size_t i = 0; i < result.reasons.size(); ++i)
    fmt::print(x_out, "{}{}", i == 0 ? ": " : "; ", result.reasons[i]);
  if (result.outcome == Outcome::kPassed && !result.failed_attempts.empty())
    fmt::print(x_out, ": passed on attempt {}", result.failed_attempts.size() + 1);
  std::fputc('\n', x_out);
  for (size_t i = 0; i < result.failed_attempts.size(); ++i)
    fmt::print(x_out, "      attempt {}: {}\n", i + 1, result.failed_attempts[i]);
  print_indented(x_out, "the command's output:", result.step_output);
  print_indented(x_out, "the console's last lines:", result.tail);
  print_indented(x_out, "lethe's last messages:", result.messages_tail);
  show_status();
}

void Progress::summary(const std::vector<GuestResult>& results, double seconds) {
  erase_status();
  const Totals totals = count_results(results);
  fmt::print(x_out, "{} passed, {} failed, {} skipped", totals.passed, totals.failed,
             totals.skipped);
  if (totals.flaky > 0) fmt::print(x_out, ", {} of the passed were FLAKY", totals.flaky);
  if (totals.interrupted > 0) fmt::print(x_out, ", {} not run to the end", totals.interrupted);
  fmt::print(x_out, " ({:.1f} s)\n", seconds);
  std::fflush(x_out);
}

std::string results_json(const std::vector<GuestResult>& results) {
  const auto word = [](Outcome outcome) {
    switch (outcome) {
      case Outcome::kPassed:
        return "passed";
      case Outcome::kFailed:
        return "failed";
      case Outcome::kSkipped:
        return "skipped";
      case Outcome::kInterrupted:
        return "interrupted";
      case Outcome::kNotRun:
        break;
    }
    return "not-run";
  };
  const auto list = [](const std::vector<std::string>& texts) {
    std::string text;
    for (const std::string& each : texts) text += (text.empty() ? "" : ",") + json_quote(each);
    return text;
  };
  std::string text;
  for (const GuestResult& result : results)
    text += fmt::format(
        R"({}{{"name":{},"outcome":"{}","seconds":{:.3f},"reasons":[{}],"failed_attempts":[{}]}})",
        text.empty() ? "" : ",", json_quote(printable(result.name)), word(result.outcome),
        result.seconds, list(result.reasons), list(result.failed_attempts));
  return "[" + text + "]\n";
}

std::string xml_escape(std::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '&':
        escaped += "&amp;";
        continue;
      case '<':
        escaped += "&lt;";
        continue;
      case '>':
        escaped += "&gt;";
        continue;
      case '"':
        escaped += "&quot;";
        continue;
      case '\n':
      case '\t':
        escaped += c;
        continue;
      case '\r':
        continue;  // consoles end lines with \r\n
      default:
        break;
    }
    if (byte < 0x20 || byte >= 0x7f) {
      escaped += fmt::format("\\x{:02x}", byte);
    } else {
      escaped += c;
    }
  }
  return escaped;
}

std::string junit_xml(const std::vector<GuestResult>& results, double seconds) {
  const Totals totals = count_results(results);
  std::string xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n";
  xml += fmt::format(
      "<testsuite name=\"lethe check\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" "
      "time=\"{:.3f}\">\n",
      results.size(), totals.failed, totals.interrupted, totals.skipped, seconds);
  for (const GuestResult& result : results) {
    xml += fmt::format("<testcase classname=\"lethe.check\" name=\"{}\" time=\"{:.3f}\">",
                       xml_escape(result.name), result.seconds);
    const std::string why = xml_escape(fmt::format("{}", fmt::join(result.reasons, "; ")));
    std::string log;
    for (size_t i = 0; i < result.failed_attempts.size(); ++i)
      log += fmt::format("{}attempt {} failed: {}\n",
                         result.outcome == Outcome::kPassed ? "FLAKY: " : "", i + 1,
                         result.failed_attempts[i]);
    if (!result.step_output.empty()) log += "command's output, last lines:\n" + result.step_output;
    if (!result.tail.empty()) log += "console, last lines:\n" + result.tail;
    if (!result.messages_tail.empty()) log += "lethe's last messages:\n" + result.messages_tail;
    if (result.outcome == Outcome::kFailed)
      xml += fmt::format("\n<failure message=\"{}\">{}</failure>", why, xml_escape(log));
    if (result.outcome == Outcome::kSkipped) xml += fmt::format("\n<skipped message=\"{}\"/>", why);
    if (result.outcome == Outcome::kInterrupted || result.outcome == Outcome::kNotRun)
      xml += fmt::format("\n<error message=\"{}\"/>",
                         result.outcome == Outcome::kNotRun ? "not run: interrupted" : why);
    if (result.outcome == Outcome::kPassed && !log.empty())
      xml += fmt::format("\n<system-out>{}</system-out>", xml_escape(log));
    xml += "</testcase>\n";
  }
  return xml + "</testsuite>\n</testsuites>\n";
}

Result<ReportFile> ReportFile::open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (!fd.valid()) return host_error("'{}': {}", printable(path), errno_text(errno));
  return ReportFile(path, std::move(fd));
}

Result<> ReportFile::write(std::string_view text) {
  struct stat status{};
  // Terminals and pipes can't be cut, and need not be.
  if (::fstat(x_fd.get(), &status) == 0 && S_ISREG(status.st_mode) &&
      ::ftruncate(x_fd.get(), 0) != 0)
    return host_error("'{}': {}", printable(x_path), errno_text(errno));
  const auto wrote = write_all(x_fd.get(), text);
  if (!wrote) return host_error("'{}': {}", printable(x_path), wrote.error().text);
  return {};
}

}  // namespace lethe
