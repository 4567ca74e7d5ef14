// The other end of the control API, for the command line: one request at a time over a Unix socket,
// blocking, each wait with a deadline.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace lethe {

inline constexpr size_t kClientAnswerBytesMax = 16 << 20;
inline constexpr std::chrono::milliseconds kClientPatience{5000};

struct ClientAnswer {
  unsigned status = 0;
  std::string body;
  std::string type = {};  // Content-Type
};

struct ClientRequest {
  std::string socket;  // path
  std::string method = "GET";
  std::string path;
  std::string body = {};
  // The longest silence that is borne; answers in pieces may take longer in all.
  std::chrono::milliseconds patience = kClientPatience;
  // Set when a signal asks for the end: http_request() then fails with kClientCancelled. Its waits
  // end at a signal, and look at it every 100 ms besides.
  const std::atomic<bool>* cancelled = nullptr;
  // Called for each whole line of an answer with status 200 as it comes, without its newline.
  std::function<void(std::string_view)> on_line = {};
};

inline constexpr const char* kClientCancelled = "cancelled";

// Fails (kHost) when nobody listens at the socket, or the answer does not come, is cut, or is no
// HTTP; the error is one line that does not name the VM.
[[nodiscard]] Result<ClientAnswer> http_request(const ClientRequest& request);

}  // namespace lethe
