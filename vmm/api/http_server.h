// A small HTTP/1.1 server on a Unix socket: what the control API speaks. Boost.Beast's parser and
// Asio stay behind it (vmm/api/http_server.cc).
//
// Everything a client can size has a limit, every wait for a client a deadline. A client that
// breaks a rule gets one answer that says so, if it still listens, and is disconnected; the others,
// and the VM, do not notice. Without clients nothing wakes up: there is no timer then.
//
// Threading: everything on the loop's thread.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/event_loop.h"
#include "base/unique_fd.h"

namespace lethe {

struct HttpLimits {
  size_t connections_max = 128;                // one more is told 503 and closed
  size_t header_bytes_max = 8 * 1024;          // request line and fields: 431
  size_t body_bytes_max = 64 * 1024;           // 413
  size_t unread_bytes_max = 256 * 1024;        // of a stream, kept for a client that reads slowly
  std::chrono::milliseconds idle_max{60'000};  // between requests, then closed
  std::chrono::milliseconds request_max{10'000};  // from a request's first byte to its last: 408
  std::chrono::milliseconds write_max{10'000};    // for the client to take what was sent
};

struct HttpRequest {
  std::string method;  // "GET"; one that has no name in RFC 9110 as the client wrote it
  std::string path;    // "/state": the target up to '?', as sent: nothing is decoded
  std::string query;   // what follows '?'
  std::string body;
  std::string last_event_id;  // the header field of that name: an event stream goes on from there
};

struct HttpAnswer {
  unsigned status = 200;
  std::string body = {};
  std::string type = "application/json";
  std::string allow = {};  // the Allow field of a 405
};

// {"error": "TEXT"} with a status; the text is escaped.
[[nodiscard]] HttpAnswer http_error(unsigned status, std::string_view text);
// The text as a JSON string, with its quotes.
[[nodiscard]] std::string json_quote(std::string_view text);

// How a request is answered: now, or later. One of send() and begin()...end(); dropped without, the
// client gets a 500. When the client is gone meanwhile, all of it does nothing.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void send(HttpAnswer answer) = 0;
  // An answer in pieces, each sent at once. write() returns false when the client is gone, or so
  // slow that it was disconnected (unread_bytes_max).
  virtual void begin(unsigned status, std::string_view type) = 0;
  virtual bool write(std::string_view piece) = 0;
  virtual void end() = 0;
  // The client is: a stream notices as soon as it hangs up.
  [[nodiscard]] virtual bool gone() const = 0;
};

using HttpHandler = std::function<void(const HttpRequest&, std::shared_ptr<HttpReply>)>;

class HttpServer {
 public:
  // Serves `listener`, which it shares (a duplicate is made): connections that come while no server
  // runs wait in its backlog. `loop` must outlive the server.
  [[nodiscard]] static Result<std::unique_ptr<HttpServer>> create(EventLoop& loop,
                                                                  const UniqueFd& listener,
                                                                  HttpHandler handler,
                                                                  const HttpLimits& limits = {});
  // Closes all connections. The handler is not called any more, and replies that are still held
  // do nothing.
  virtual ~HttpServer() = default;
  [[nodiscard]] virtual size_t connections() const = 0;
};

}  // namespace lethe
