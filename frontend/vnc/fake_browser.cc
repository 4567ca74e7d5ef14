#include "frontend/vnc/fake_browser.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cctype>
#include <cstdlib>

#include "base/test_util.h"

namespace lethe::gui {
namespace {

// Chromium reads commands from descriptor 3 and answers on 4.
[[noreturn]] void run_chromium(int commands, int answers, const std::string& folder) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::setpgid(0, 0);
  const int in = ::fcntl(commands, F_DUPFD, 10), out = ::fcntl(answers, F_DUPFD, 10);
  ::dup2(in, 3);
  ::dup2(out, 4);
  const int null = ::open("/dev/null", O_RDWR);
  for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
  const std::string profile = "--user-data-dir=" + folder + "/chromium";
  ::setenv("HOME", folder.c_str(), 1);
  // No sandbox: tests may run as root, and it looks at our own page alone.
  ::execlp("chromium", "chromium", "--headless", "--no-sandbox", "--disable-gpu",
           "--hide-scrollbars", "--no-first-run", "--window-size=400,300",
           "--remote-debugging-pipe", profile.c_str(), "about:blank", static_cast<char*>(nullptr));
  std::_Exit(127);
}

// The string or word after "name": in JSON; good enough for replies that have the name once.
std::optional<std::string> member(const std::string& json, const std::string& name) {
  size_t at = json.find("\"" + name + "\":");
  if (at == std::string::npos) return std::nullopt;
  at += name.size() + 3;
  const bool quoted = json[at] == '"';
  const size_t start = at + (quoted ? 1 : 0);
  return json.substr(start, json.find_first_of(quoted ? "\"" : ",}", start) - start);
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

}  // namespace

FakeBrowser::FakeBrowser(const std::string& folder) {
  int commands[2], answers[2];
  if (::pipe2(commands, O_CLOEXEC) != 0 || ::pipe2(answers, O_CLOEXEC) != 0) return;
  x_pid = ::fork();
  if (x_pid == 0) run_chromium(commands[0], answers[1], folder);
  ::close(commands[0]);
  ::close(answers[1]);
  x_to.reset(commands[1]);
  x_from.reset(answers[0]);
  const auto created = call("Target.createTarget", R"({"url":"about:blank"})");
  const auto target = created ? member(*created, "targetId") : std::nullopt;
  if (!target) return;
  const auto attached =
      call("Target.attachToTarget", fmt::format(R"({{"targetId":"{}","flatten":true}})", *target));
  if (attached) x_session = member(*attached, "sessionId").value_or("");
}

FakeBrowser::~FakeBrowser() {
  if (x_pid <= 0) return;
  x_to.reset();  // it ends with its pipe
  int status = 0;
  if (!eventually([&] { return ::waitpid(x_pid, &status, WNOHANG) == x_pid; },
                  std::chrono::milliseconds(3000))) {
    ::kill(-x_pid, SIGKILL);
    ::waitpid(x_pid, &status, 0);
  }
}

std::optional<std::string> FakeBrowser::receive() {
  size_t end = 0;
  while ((end = x_buffer.find('\0')) == std::string::npos) {
    pollfd waiting{.fd = x_from.get(), .events = POLLIN, .revents = 0};
    char bytes[65536];
    if (::poll(&waiting, 1, static_cast<int>(kPatience.count())) != 1) return std::nullopt;
    const ssize_t got = ::read(x_from.get(), bytes, sizeof bytes);
    if (got <= 0) return std::nullopt;
    x_buffer.append(bytes, static_cast<size_t>(got));
  }
  std::string message = x_buffer.substr(0, end);
  x_buffer.erase(0, end + 1);
  return message;
}

std::optional<std::string> FakeBrowser::call(const std::string& method,
                                             const std::string& parameters) {
  const std::string session =
      x_session.empty() ? "" : fmt::format(R"(,"sessionId":"{}")", x_session);
  const std::string message = fmt::format(R"({{"id":{},"method":"{}","params":{}{}}})", ++x_id,
                                          method, parameters, session);
  // With its zero: messages are separated by it.
  if (::write(x_to.get(), message.c_str(), message.size() + 1) !=
      static_cast<ssize_t>(message.size() + 1))
    return std::nullopt;
  const std::string answer = fmt::format("{{\"id\":{},", x_id);
  while (auto reply = receive()) {
    if (!reply->starts_with(answer)) continue;  // an event
    if (reply->starts_with(answer + "\"error\"")) return std::nullopt;
    return reply;
  }
  return std::nullopt;
}

bool FakeBrowser::open(const std::string& url) {
  return call("Page.navigate", fmt::format(R"({{"url":{}}})", quoted(url))).has_value();
}

std::optional<std::string> FakeBrowser::evaluate(const std::string& expression) {
  const auto reply =
      call("Runtime.evaluate", fmt::format(R"({{"expression":{}}})", quoted(expression)));
  return reply ? member(*reply, "value") : std::nullopt;
}

bool FakeBrowser::wait_until(const std::string& condition) {
  return eventually([&] { return evaluate(condition) == "true"; }, kPatience);
}

bool FakeBrowser::click(int x, int y) {
  for (const char* type : {"mousePressed", "mouseReleased"})
    if (!call("Input.dispatchMouseEvent",
              fmt::format(
                  R"({{"type":"{}","x":{},"y":{},"button":"left","buttons":1,"clickCount":1}})",
                  type, x, y)))
      return false;
  return true;
}

bool FakeBrowser::press_key(char letter) {
  const char upper = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  for (const char* type : {"keyDown", "keyUp"})
    if (!call("Input.dispatchKeyEvent",
              fmt::format(R"({{"type":"{}","key":"{}","code":"Key{}"}})", type, letter, upper)))
      return false;
  return true;
}

}  // namespace lethe::gui
