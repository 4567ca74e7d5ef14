// For tests: headless Chromium, driven over its DevTools pipe. Every wait has a deadline. One
// thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>

#include "base/unique_fd.h"

namespace lethe::gui {

class FakeBrowser {
 public:
  // A page of 400x300, with its profile in `folder`.
  explicit FakeBrowser(const std::string& folder);
  ~FakeBrowser();
  FakeBrowser(const FakeBrowser&) = delete;
  FakeBrowser& operator=(const FakeBrowser&) = delete;

  [[nodiscard]] bool running() const { return !x_session.empty(); }
  [[nodiscard]] bool open(const std::string& url);
  // What a JavaScript expression of type string gives, as it stands in JSON; nothing on an error.
  [[nodiscard]] std::optional<std::string> evaluate(const std::string& expression);
  [[nodiscard]] bool wait_until(const std::string& condition);  // an expression gives true
  [[nodiscard]] bool click(int x, int y);
  [[nodiscard]] bool press_key(char letter);

 private:
  // The reply of a command; nothing in time, or an error.
  std::optional<std::string> call(const std::string& method, const std::string& parameters);
  std::optional<std::string> receive();
  static constexpr std::chrono::milliseconds kPatience{30'000};

  pid_t x_pid = -1;
  UniqueFd x_to, x_from;
  std::string x_buffer;
  std::string x_session;
  int x_id = 0;
};

}  // namespace lethe::gui
