#include "vmm/api/http_client.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "base/unique_fd.h"
#include "base/unix_socket.h"

namespace lethe {
namespace http = boost::beast::http;
using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr milliseconds kLook{100};  // how often `cancelled` is looked at

class Exchange {
 public:
  explicit Exchange(const ClientRequest& request) : x_request(request) {}

  Result<ClientAnswer> run() {
    LETHE_TRY(connect());
    LETHE_TRY(send());
    return receive();
  }

 private:
  // Waits until the socket is ready; starts the patience anew.
  Result<> wait(short events) {
    const auto end = steady_clock::now() + x_request.patience;
    for (;;) {
      if (x_request.cancelled != nullptr && x_request.cancelled->load())
        return host_error("{}", kClientCancelled);
      pollfd waiting{x_fd.get(), events, 0};
      const auto left = std::chrono::ceil<milliseconds>(end - steady_clock::now());
      if (left.count() <= 0)
        return host_error("it does not answer within {} ms", x_request.patience.count());
      const int ready = ::poll(&waiting, 1, static_cast<int>(std::min(left, kLook).count()));
      if (ready > 0) return {};
      if (ready < 0 && errno != EINTR) return host_error("poll: {}", errno_text(errno));
    }
  }

  Result<> connect() {
    x_fd.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!x_fd.valid()) return host_error("cannot make a socket: {}", errno_text(errno));
    const auto end = steady_clock::now() + x_request.patience;
    while (connect_unix(x_fd.get(), x_request.socket) != 0) {
      // A full backlog.
      if (errno != EAGAIN || steady_clock::now() > end)
        return host_error("cannot connect to '{}': {}", x_request.socket, errno_text(errno));
      (void)::poll(nullptr, 0, 10);
    }
    return {};
  }

  Result<> send() {
    const std::string text = fmt::format(
        "{} {} HTTP/1.1\r\nHost: lethe\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}",
        x_request.method, x_request.path, x_request.body.size(), x_request.body);
    for (size_t sent = 0; sent < text.size();) {
      const ssize_t now = ::send(x_fd.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (now >= 0) {
        sent += static_cast<size_t>(now);
      } else if (errno == EAGAIN || errno == EINTR) {
        LETHE_TRY(wait(POLLOUT));
      } else if (errno == EPIPE) {
        return {};  // it may have answered before it closed
      } else {
        return host_error("cannot send the request: {}", errno_text(errno));
      }
    }
    return {};
  }

  Result<ClientAnswer> receive() {
    http::response_parser<http::string_body> parser;
    parser.eager(true);
    parser.body_limit(kClientAnswerBytesMax);
    boost::beast::flat_buffer buffer;
    error_code error;
    while (!parser.is_done()) {
      LETHE_TRY(wait(POLLIN));
      const auto room = buffer.prepare(16384);
      const ssize_t got = ::recv(x_fd.get(), room.data(), room.size(), 0);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      if (got < 0) return host_error("the answer was cut: {}", errno_text(errno));
      if (got == 0) {
        if (!parser.got_some()) return host_error("it closed the connection without an answer");
        parser.put_eof(error);
        if (error) return host_error("the answer was cut: it may have ended meanwhile");
        break;
      }
      buffer.commit(static_cast<size_t>(got));
      buffer.consume(parser.put(buffer.data(), error));
      if (error && error != http::error::need_more)
        return host_error("the answer is no HTTP: {}", error.message());
      if (parser.is_header_done() && parser.get().result_int() == 200)
        tell_lines(parser.get().body());
    }
    auto answer = parser.release();
    return ClientAnswer{.status = answer.result_int(),
                        .body = std::move(answer.body()),
                        .type = answer[http::field::content_type]};
  }

  void tell_lines(const std::string& body) {
    if (!x_request.on_line) return;
    for (size_t end = body.find('\n', x_told); end != std::string::npos;
         end = body.find('\n', x_told)) {
      x_request.on_line(std::string_view(body).substr(x_told, end - x_told));
      x_told = end + 1;
    }
  }

  const ClientRequest& x_request;
  UniqueFd x_fd;
  size_t x_told = 0;  // bytes of the body that on_line() has seen
};

}  // namespace

Result<ClientAnswer> http_request(const ClientRequest& request) { return Exchange(request).run(); }

}  // namespace lethe
