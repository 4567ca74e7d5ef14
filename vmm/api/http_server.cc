#include "vmm/api/http_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>

#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <set>
#include <utility>

#include "base/assert.h"
#include "base/event_loop_asio.h"
#include "base/log.h"

namespace lethe {
namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

namespace {

using Protocol = asio::local::stream_protocol;

constexpr size_t kReadChunk = 4096;
constexpr size_t kSentBytesKept = 64 * 1024;
constexpr std::chrono::milliseconds kAcceptRetry{100};  // the host is out of descriptors

class Connection;

// What the server's end leaves for connections and replies that are still held by somebody.
struct Shared {
  Shared(asio::io_context& context, HttpHandler call, const HttpLimits& bounds)
      : acceptor(context), retry(context), handler(std::move(call)), limits(bounds) {}
  Protocol::acceptor acceptor;
  asio::steady_timer retry;
  HttpHandler handler;
  HttpLimits limits;
  std::set<Connection*> connections;
  bool open = true;
};

std::string head_of(unsigned status, std::string_view type) {
  const std::string_view reason = http::obsolete_reason(static_cast<http::status>(status));
  return fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\n", status, reason, type);
}

class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<Shared> shared, Protocol::socket socket)
      : x_shared(std::move(shared)),
        x_socket(std::move(socket)),
        x_timer(x_socket.get_executor()),
        x_limits(x_shared->limits) {
    x_shared->connections.insert(this);
  }
  ~Connection() { close(); }

  void start_request();
  void close();

  // For Reply.
  void answer(HttpAnswer answer);
  void begin_stream(unsigned status, std::string_view type);
  bool write_piece(std::string_view piece);
  void end_stream();
  [[nodiscard]] bool closed() const { return x_closed; }

 private:
  using Parser = http::request_parser<http::string_body>;

  void read();
  void parse();
  void dispatch();
  void refuse(const error_code& error);
  void arm(std::chrono::milliseconds delay, void (Connection::*expired)());
  void disarm();
  void on_slow_request();
  void send_out(std::string_view bytes);
  void push();
  void wait_for_room();
  void on_answer_sent();
  void watch_hang_up();

  const std::shared_ptr<Shared> x_shared;
  Protocol::socket x_socket;
  asio::steady_timer x_timer;
  uint64_t x_timer_generation = 0;  // a handler of an older arm() finds another number
  const HttpLimits& x_limits;
  boost::beast::flat_buffer x_buffer;
  std::optional<Parser> x_parser;
  bool x_idle = false;  // waits for a request's first byte
  bool x_told_continue = false;
  bool x_keep_alive = false;
  bool x_head_only = false;  // HEAD: an answer without its body
  bool x_chunked = false;    // the stream that is being sent
  bool x_answered = false;   // the whole answer is in x_out, or sent
  bool x_closed = false;
  bool x_waits_for_room = false;  // in the socket
  bool x_watches_hang_up = false;
  std::string x_out;
  size_t x_sent = 0;  // of x_out
};

class Reply final : public HttpReply {
 public:
  explicit Reply(std::shared_ptr<Connection> connection) : x_connection(std::move(connection)) {}
  ~Reply() override {
    if (x_state == State::kOpen)
      x_connection->answer(http_error(500, "the request was dropped"));
    else if (x_state == State::kStreaming)
      x_connection->close();  // without the last chunk the client sees that it is cut
  }
  void send(HttpAnswer answer) override {
    LETHE_ASSERT(x_state == State::kOpen);
    x_state = State::kDone;
    x_connection->answer(std::move(answer));
  }
  void begin(unsigned status, std::string_view type) override {
    LETHE_ASSERT(x_state == State::kOpen);
    x_state = State::kStreaming;
    x_connection->begin_stream(status, type);
  }
  bool write(std::string_view piece) override {
    LETHE_ASSERT(x_state == State::kStreaming);
    return x_connection->write_piece(piece);
  }
  void end() override {
    LETHE_ASSERT(x_state == State::kStreaming);
    x_state = State::kDone;
    x_connection->end_stream();
  }
  [[nodiscard]] bool gone() const override { return x_connection->closed(); }

 private:
  enum class State : uint8_t { kOpen, kStreaming, kDone };
  const std::shared_ptr<Connection> x_connection;
  State x_state = State::kOpen;
};

void Connection::start_request() {
  if (x_closed) return;
  x_parser.emplace();
  x_parser->header_limit(static_cast<uint32_t>(x_limits.header_bytes_max));
  x_parser->body_limit(x_limits.body_bytes_max);
  x_parser->eager(true);
  x_told_continue = false;
  x_answered = false;
  x_idle = x_buffer.size() == 0;
  if (x_idle) {
    arm(x_limits.idle_max, &Connection::close);
    read();
  } else {  // pipelined
    arm(x_limits.request_max, &Connection::on_slow_request);
    parse();
  }
}

void Connection::read() {
  x_socket.async_read_some(x_buffer.prepare(kReadChunk),
                           [self = shared_from_this()](const error_code& error, size_t got) {
                             if (self->x_closed || self->x_answered) return;
                             if (error) return self->close();
                             self->x_buffer.commit(got);
                             if (self->x_idle)
                               self->arm(self->x_limits.request_max, &Connection::on_slow_request);
                             self->x_idle = false;
                             self->parse();
                           });
}

void Connection::parse() {
  error_code error;
  x_buffer.consume(x_parser->put(x_buffer.data(), error));
  if (error && error != http::error::need_more) return refuse(error);
  if (x_parser->is_done()) return dispatch();
  // Beast bounds the header and the body, but not what stands between the chunks of one.
  if (x_buffer.size() > x_limits.header_bytes_max) return refuse(http::error::header_limit);
  if (x_parser->is_header_done() && !x_told_continue) {
    x_told_continue = true;
    if (boost::beast::iequals(x_parser->get()[http::field::expect], "100-continue"))
      send_out("HTTP/1.1 100 Continue\r\n\r\n");
  }
  read();
}

void Connection::refuse(const error_code& error) {
  x_keep_alive = false;
  if (error == http::error::header_limit)
    return answer(http_error(431, fmt::format("the request's header is longer than {} bytes",
                                              x_limits.header_bytes_max)));
  if (error == http::error::body_limit)
    return answer(http_error(
        413, fmt::format("the request's body is longer than {} bytes", x_limits.body_bytes_max)));
  answer(http_error(400, fmt::format("not HTTP/1.1: {}", error.message())));
}

void Connection::on_slow_request() {
  x_keep_alive = false;
  answer(http_error(
      408, fmt::format("the request was not complete within {} ms", x_limits.request_max.count())));
}

void Connection::dispatch() {
  disarm();
  x_keep_alive = x_parser->get().keep_alive();
  x_chunked = x_parser->get().version() >= 11;
  const auto message = x_parser->release();
  x_head_only = message.method() == http::verb::head;
  HttpRequest request;
  request.method = message.method_string();
  const std::string_view target(message.target().data(), message.target().size());
  const size_t mark = target.find('?');
  request.path = target.substr(0, mark);
  if (mark != std::string_view::npos) request.query = target.substr(mark + 1);
  request.body = message.body();
  request.last_event_id = message["Last-Event-ID"];
  x_shared->handler(request, std::make_shared<Reply>(shared_from_this()));
}

void Connection::answer(HttpAnswer answer) {
  if (x_closed) return;
  disarm();
  x_answered = true;
  std::string head = head_of(answer.status, answer.type);
  if (!answer.allow.empty()) head += fmt::format("Allow: {}\r\n", answer.allow);
  head += fmt::format("Content-Length: {}\r\nConnection: {}\r\n\r\n", answer.body.size(),
                      x_keep_alive ? "keep-alive" : "close");
  send_out(x_head_only ? head : head + answer.body);
}

void Connection::begin_stream(unsigned status, std::string_view type) {
  if (x_closed) return;
  if (!x_chunked) x_keep_alive = false;  // HTTP/1.0: the end of the connection is the stream's
  send_out(head_of(status, type) + fmt::format("{}Connection: {}\r\n\r\n",
                                               x_chunked ? "Transfer-Encoding: chunked\r\n" : "",
                                               x_keep_alive ? "keep-alive" : "close"));
  watch_hang_up();
}

// While a stream has nothing to send, nothing else would tell that its client is gone. Only a close
// of both directions counts (EPOLLHUP): who only shuts his sending side down still reads.
void Connection::watch_hang_up() {
  if (std::exchange(x_watches_hang_up, true)) return;
  x_socket.async_wait(Protocol::socket::wait_error,
                      [self = shared_from_this()](const error_code&) { self->close(); });
}

bool Connection::write_piece(std::string_view piece) {
  if (x_closed) return false;
  if (piece.empty()) return true;  // an empty chunk would be the last one
  if (x_out.size() - x_sent + piece.size() > x_limits.unread_bytes_max) {
    close();
    return false;
  }
  if (x_chunked)
    send_out(fmt::format("{:x}\r\n{}\r\n", piece.size(), piece));
  else
    send_out(piece);
  return !x_closed;
}

void Connection::end_stream() {
  if (x_closed) return;
  x_answered = true;
  send_out(x_chunked ? "0\r\n\r\n" : "");
}

void Connection::send_out(std::string_view bytes) {
  if (x_sent > kSentBytesKept) x_out.erase(0, std::exchange(x_sent, 0));
  x_out += bytes;
  if (!x_waits_for_room) push();
}

// As much as the kernel takes, at once: what a VM says last must be out before its loop ends.
void Connection::push() {
  while (x_sent < x_out.size()) {
    const ssize_t now = ::send(x_socket.native_handle(), x_out.data() + x_sent,
                               x_out.size() - x_sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (now < 0 && errno == EINTR) continue;
    if (now < 0 && errno == EAGAIN) return wait_for_room();
    if (now < 0) return close();
    x_sent += static_cast<size_t>(now);
  }
  x_out.clear();
  x_sent = 0;
  if (!x_answered) return;
  // Not from here: the handler that answers may still be at work.
  asio::post(x_socket.get_executor(), [self = shared_from_this()] { self->on_answer_sent(); });
}

void Connection::wait_for_room() {
  x_waits_for_room = true;
  arm(x_limits.write_max, &Connection::close);
  x_socket.async_wait(Protocol::socket::wait_write,
                      [self = shared_from_this()](const error_code& error) {
                        self->x_waits_for_room = false;
                        if (self->x_closed) return;
                        if (error) return self->close();
                        self->disarm();
                        // A body that was told to continue has its deadline again.
                        if (!self->x_answered && self->x_parser && !self->x_parser->is_done())
                          self->arm(self->x_limits.request_max, &Connection::on_slow_request);
                        self->push();
                      });
}

void Connection::on_answer_sent() {
  if (x_closed) return;
  if (x_keep_alive) return start_request();
  close();
}

void Connection::disarm() {
  ++x_timer_generation;
  x_timer.cancel();
}

void Connection::arm(std::chrono::milliseconds delay, void (Connection::*expired)()) {
  const uint64_t generation = ++x_timer_generation;
  x_timer.expires_after(delay);
  x_timer.async_wait([self = shared_from_this(), generation, expired](const error_code& error) {
    if (error || self->x_closed || self->x_timer_generation != generation) return;
    (self.get()->*expired)();
  });
}

void Connection::close() {
  if (x_closed) return;
  x_closed = true;
  x_shared->connections.erase(this);  // replies may be held for long
  x_timer.cancel();
  x_out = {};
  error_code ignored;
  x_socket.shutdown(Protocol::socket::shutdown_both, ignored);
  x_socket.close(ignored);
}

void accept_next(const std::shared_ptr<Shared>& shared);

void on_accepted(const std::shared_ptr<Shared>& shared, Protocol::socket socket) {
  if (shared->connections.size() >= shared->limits.connections_max) {
    const HttpAnswer answer = http_error(503, "too many connections");
    const std::string text =
        fmt::format("{}Content-Length: {}\r\nConnection: close\r\n\r\n{}",
                    head_of(answer.status, answer.type), answer.body.size(), answer.body);
    (void)::send(socket.native_handle(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    return;
  }
  std::make_shared<Connection>(shared, std::move(socket))->start_request();
}

void accept_next(const std::shared_ptr<Shared>& shared) {
  shared->acceptor.async_accept([shared](const error_code& error, Protocol::socket socket) {
    if (!shared->open || error == asio::error::operation_aborted) return;
    if (!error) {
      on_accepted(shared, std::move(socket));
      return accept_next(shared);
    }
    LETHE_LOG_LIMITED(LogModule::kVmm, "the control API can't take a connection: {}",
                      error.message());
    shared->retry.expires_after(kAcceptRetry);
    shared->retry.async_wait([shared](const error_code& stopped) {
      if (!stopped && shared->open) accept_next(shared);
    });
  });
}

class AsioHttpServer final : public HttpServer {
 public:
  explicit AsioHttpServer(std::shared_ptr<Shared> shared) : x_shared(std::move(shared)) {}
  ~AsioHttpServer() override {
    x_shared->open = false;
    error_code ignored;
    x_shared->acceptor.close(ignored);
    x_shared->retry.cancel();
    const std::set<Connection*> all = x_shared->connections;
    for (Connection* connection : all) connection->close();
  }
  [[nodiscard]] size_t connections() const override { return x_shared->connections.size(); }

 private:
  std::shared_ptr<Shared> x_shared;
};

}  // namespace

std::string json_quote(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      quoted += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

HttpAnswer http_error(unsigned status, std::string_view text) {
  return {.status = status, .body = fmt::format("{{\"error\":{}}}\n", json_quote(text))};
}

Result<std::unique_ptr<HttpServer>> HttpServer::create(EventLoop& loop, const UniqueFd& listener,
                                                       HttpHandler handler,
                                                       const HttpLimits& limits) {
  UniqueFd copy(::fcntl(listener.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return host_error("cannot duplicate a socket: {}", errno_text(errno));
  auto shared = std::make_shared<Shared>(asio_context(loop), std::move(handler), limits);
  error_code error;
  shared->acceptor.assign(Protocol(), copy.get(), error);
  if (error) return host_error("cannot watch the control API's socket: {}", error.message());
  (void)copy.release();
  accept_next(shared);
  return std::make_unique<AsioHttpServer>(std::move(shared));
}

}  // namespace lethe
