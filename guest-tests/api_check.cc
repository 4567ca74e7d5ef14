#include "guest-tests/api_check.h"

#include <gtest/gtest.h>

#include "vmm/api/openapi_test_util.h"

namespace lethe_test {

constexpr std::chrono::milliseconds kApiPatience{60'000};

std::string wrong_with_answer(std::string_view method, std::string_view path, unsigned status,
                              std::string_view type, std::string_view body) {
  static const lethe::OpenApi document(LETHE_SOURCE_DIR "/docs/openapi.json");
  return document.check_answer(method, path, status, type, body);
}

lethe::ClientAnswer ask_api(const std::string& socket, const std::string& method,
                            const std::string& path, const std::string& body) {
  const auto answer = lethe::http_request(
      {.socket = socket, .method = method, .path = path, .body = body, .patience = kApiPatience});
  EXPECT_TRUE(answer) << method << " " << path << ": " << answer.error().text;
  if (!answer) return {};
  EXPECT_EQ(wrong_with_answer(method, path, answer->status, answer->type, answer->body), "")
      << method << " " << path;
  return *answer;
}

std::string event_names(const std::string& stream) {
  EXPECT_EQ(wrong_with_answer("GET", "/events", 200, "text/event-stream", stream), "");
  std::string names;
  for (size_t at = 0; (at = stream.find("event: ", at)) != std::string::npos;) {
    at += 7;
    names += stream.substr(at, stream.find('\n', at) - at) + " ";
  }
  return names;
}

}  // namespace lethe_test
