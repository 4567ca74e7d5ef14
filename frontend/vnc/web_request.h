// The head of an HTTP request, as far as the noVNC page needs it. No state, any thread.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace lethe::gui {

inline constexpr size_t kRequestBytesMax = 8192;

struct WebRequest {
  enum class Kind { kFile, kWebSocket, kRefused };
  Kind kind = Kind::kRefused;
  std::string path;      // of a file: "/", "/core/rfb.js"; only letters, digits and "/._-", no ".."
  const char* why = "";  // refused: an HTTP status line's end, "400 Bad Request"
};

// Nothing: the head is not there whole yet. `port` is ours.
//
// Two things keep other web pages in the user's browser away from the VM: Host must be this
// machine by a name that is always its own (else DNS rebinding makes us part of another site), and
// a WebSocket's Origin must be our own page (browsers let any page connect anywhere).
[[nodiscard]] std::optional<WebRequest> parse_request(std::string_view head, unsigned port);

}  // namespace lethe::gui
