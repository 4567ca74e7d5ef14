#include "frontend/vnc/web_gate.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <fstream>
#include <string_view>

#include "frontend/vnc/web_page.h"
#include "frontend/vnc/web_request.h"

namespace lethe::gui {
namespace {

const char* content_type(std::string_view path) {
  if (path.ends_with(".js")) return "text/javascript; charset=utf-8";
  if (path.ends_with(".css")) return "text/css; charset=utf-8";
  if (path.ends_with(".html") || path == "/") return "text/html; charset=utf-8";
  return "application/octet-stream";
}

std::string http(std::string_view status, std::string_view type, std::string_view body) {
  // The page may load nothing from elsewhere, and no other page may frame it.
  return fmt::format(
      "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n"
      "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
      "Content-Security-Policy: default-src 'self'; img-src 'self' data:; style-src 'self' "
      "'unsafe-inline'; frame-ancestors 'none'\r\n\r\n{}",
      status, type, body.size(), body);
}

// poll(2) tells of what there is to read only from so many bytes on (socket(7), tcp(7)).
void wake_from(int socket, int bytes) {
  ::setsockopt(socket, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes);
}

// The peer sends nothing more. poll(2) then tells of that at once, each time.
bool half_closed(int socket) {
  pollfd state{.fd = socket, .events = POLLRDHUP, .revents = 0};
  return ::poll(&state, 1, 0) != 0;
}

}  // namespace

void WebGate::add(UniqueFd socket) {
  if (x_connections.size() >= kConnectionsMax) return;  // closed
  x_connections.push_back({.socket = std::move(socket), .since = Clock::now(), .answer = {}});
}

void WebGate::add_to(std::vector<pollfd>& waiting) const {
  for (const Connection& connection : x_connections)
    waiting.push_back({.fd = connection.socket.get(),
                       .events = static_cast<short>(connection.answering ? POLLOUT : POLLIN),
                       .revents = 0});
}

WebGate::Clock::time_point WebGate::deadline() const {
  auto first = Clock::time_point::max();
  for (const Connection& connection : x_connections)
    first = std::min(first, connection.since + kRequestTime);
  return first;
}

void WebGate::process() {
  std::erase_if(x_connections, [this](Connection& connection) { return !look(connection); });
}

bool WebGate::look(Connection& connection) {
  if (!connection.answering && !read_request(connection)) return false;
  if (connection.answering && !send_answer(connection)) return false;
  return Clock::now() - connection.since < kRequestTime;
}

bool WebGate::read_request(Connection& connection) {
  // The bytes stay in the socket: a WebSocket's greeting is libvncserver's to answer.
  char bytes[kRequestBytesMax];
  const ssize_t got = ::recv(connection.socket.get(), bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;
  const std::string_view head(bytes, static_cast<size_t>(got));
  const auto request = parse_request(head, x_port);
  if (!request) {
    // The part that is there must not wake us again.
    wake_from(connection.socket.get(), static_cast<int>(got) + 1);
    return !half_closed(connection.socket.get());
  }
  wake_from(connection.socket.get(), 1);
  if (request->kind == WebRequest::Kind::kWebSocket) {
    x_to_websocket(std::move(connection.socket));
    return false;
  }
  (void)::recv(connection.socket.get(), bytes, sizeof bytes, MSG_DONTWAIT);
  connection.answering = true;
  connection.answer = request->kind == WebRequest::Kind::kFile
                          ? answer_for(request->path)
                          : http(request->why, "text/plain", request->why);
  return true;
}

bool WebGate::send_answer(Connection& connection) {
  std::string& answer = connection.answer;
  const ssize_t sent =
      ::send(connection.socket.get(), answer.data(), answer.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0) return errno == EAGAIN || errno == EINTR;
  answer.erase(0, static_cast<size_t>(sent));
  return !answer.empty();
}

std::string WebGate::answer_for(const std::string& path) const {
  if (path == "/") return http("200 OK", content_type(path), kPageHtml);
  if (path == "/lethe.js") return http("200 OK", content_type(path), kPageScript);
  const bool of_novnc = path.starts_with("/core/") || path.starts_with("/vendor/");
  std::ifstream file;
  if (of_novnc) file.open(x_files + path, std::ios::binary);
  if (!file.is_open()) return http("404 Not Found", "text/plain", "404 Not Found");
  std::string body(kFileBytesMax, '\0');
  file.read(body.data(), static_cast<std::streamsize>(body.size()));
  body.resize(static_cast<size_t>(file.gcount()));
  return http("200 OK", content_type(path), body);
}

}  // namespace lethe::gui
