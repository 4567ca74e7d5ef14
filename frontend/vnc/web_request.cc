#include "frontend/vnc/web_request.h"

#include <algorithm>
#include <cctype>

namespace lethe::gui {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// The value of a header; nothing if it is not there, or twice.
std::optional<std::string> header(std::string_view head, std::string_view name) {
  std::optional<std::string> found;
  size_t at = head.find("\r\n");
  while (at != std::string_view::npos) {
    const size_t start = at + 2;
    at = head.find("\r\n", start);
    const std::string_view line = head.substr(start, at - start);
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || lower(line.substr(0, colon)) != name) continue;
    if (found) return std::nullopt;
    found = lower(trimmed(line.substr(colon + 1)));
  }
  return found;
}

bool our_host(const std::string& host, unsigned port) {
  const std::string end = ":" + std::to_string(port);
  return host == "127.0.0.1" + end || host == "localhost" + end;
}

bool plain_path(std::string_view path) {
  return path.starts_with('/') && path.find("..") == std::string_view::npos &&
         path.find("//") == std::string_view::npos && path.find("/.") == std::string_view::npos &&
         std::all_of(path.begin(), path.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '/' || c == '.' || c == '_' || c == '-';
         });
}

WebRequest refused(const char* why) { return {WebRequest::Kind::kRefused, {}, why}; }

}  // namespace

std::optional<WebRequest> parse_request(std::string_view head, unsigned port) {
  const size_t end = head.find("\r\n\r\n");
  if (end == std::string_view::npos) {
    if (head.size() < kRequestBytesMax) return std::nullopt;
    return refused("431 Request Header Fields Too Large");
  }
  head = head.substr(0, end);
  const std::string_view line = head.substr(0, head.find("\r\n"));
  const size_t space = line.find(' ', 4);
  if (!line.starts_with("GET ") || space == std::string_view::npos ||
      !line.substr(space).starts_with(" HTTP/1."))
    return refused("400 Bad Request");
  const auto host = header(head, "host");
  if (!host || !our_host(*host, port)) return refused("403 Forbidden");
  std::string_view path = line.substr(4, space - 4);
  path = path.substr(0, path.find('?'));
  if (!plain_path(path)) return refused("404 Not Found");
  if (header(head, "upgrade") != "websocket")
    return WebRequest{WebRequest::Kind::kFile, std::string(path), ""};
  // Programs other than browsers send no Origin; they have the password to get past.
  const bool foreign = lower(head).find("\r\norigin:") != std::string::npos &&
                       header(head, "origin") != "http://" + *host;
  if (foreign) return refused("403 Forbidden");
  return WebRequest{WebRequest::Kind::kWebSocket, std::string(path), ""};
}

}  // namespace lethe::gui
