// For tests: a server on a thread of its own, and clients that send any bytes.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "base/event_loop.h"
#include "base/test_util.h"
#include "base/unix_socket.h"
#include "vmm/api/http_server.h"

namespace lethe {

inline constexpr std::chrono::seconds kTestDeadline{20};

// A client's end of a connection. Every wait has a deadline.
class RawClient {
 public:
  explicit RawClient(const std::string& path) {
    x_fd.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect_unix(x_fd.get(), path), 0) << path;
  }

  // False when the server has closed.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t now = ::send(x_fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (now < 0) return false;
      bytes.remove_prefix(static_cast<size_t>(now));
    }
    return true;
  }

  // Reads until `wanted` has come, which may be now already; false at the end or the deadline.
  bool read_until(std::string_view wanted) {
    while (x_got.find(wanted) == std::string::npos)
      if (!read_more()) return false;
    return true;
  }
  // All that comes until the server closes.
  const std::string& read_to_end() {
    while (read_more()) {
    }
    EXPECT_TRUE(x_closed) << "the server did not close; it sent: " << x_got;
    return x_got;
  }
  // What has come by now is in got(); false at the end or the deadline.
  bool read_some() { return read_more(); }
  [[nodiscard]] const std::string& got() const { return x_got; }
  void forget() { x_got.clear(); }
  [[nodiscard]] bool closed() const { return x_closed; }
  [[nodiscard]] int fd() const { return x_fd.get(); }
  void hang_up() { x_fd.reset(); }

 private:
  bool read_more() {
    pollfd waiting{x_fd.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 1000 * static_cast<int>(kTestDeadline.count())) <= 0) return false;
    char chunk[4096];
    const ssize_t got = ::recv(x_fd.get(), chunk, sizeof chunk, 0);
    x_closed = got <= 0;
    if (got > 0) x_got.append(chunk, static_cast<size_t>(got));
    return got > 0;
  }
  UniqueFd x_fd;
  std::string x_got;
  bool x_closed = false;
};

// A thread with a loop that has Asio, as the main loop does (IoThread's has not).
class AsioThread {
 public:
  AsioThread() : x_thread([this] { x_loop.run(); }) {}
  ~AsioThread() {
    x_loop.stop();
    x_thread.join();
  }
  [[nodiscard]] EventLoop& loop() { return x_loop; }
  void run_and_wait(const std::function<void()>& work) {
    std::promise<void> done;
    x_loop.post([&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  }

 private:
  EventLoop x_loop;
  std::thread x_thread;
};

// A directory for a socket, and a server that listens there.
class ServedSocket {
 public:
  explicit ServedSocket(HttpHandler handler, const HttpLimits& limits = {}) {
    char made[] = "/tmp/lethe-api-XXXXXX";
    EXPECT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    auto listener = listen_unix(path());
    EXPECT_TRUE(listener);
    x_listener = std::move(*listener);
    x_thread.run_and_wait([&] {
      auto server = HttpServer::create(x_thread.loop(), x_listener, std::move(handler), limits);
      EXPECT_TRUE(server);
      x_server = std::move(*server);
    });
  }
  ~ServedSocket() {
    stop();
    std::filesystem::remove_all(x_dir);
  }
  void stop() {
    x_thread.run_and_wait([this] { x_server.reset(); });
  }
  [[nodiscard]] std::string path() const { return x_dir + "/api.sock"; }
  [[nodiscard]] AsioThread& thread() { return x_thread; }
  [[nodiscard]] size_t connections() {
    size_t count = 0;
    x_thread.run_and_wait([&] { count = x_server->connections(); });
    return count;
  }
  // Waits until so many connections are left.
  void expect_connections(size_t wanted) {
    EXPECT_TRUE(eventually([&] { return connections() == wanted; }, kTestDeadline));
    EXPECT_EQ(connections(), wanted);
  }

 private:
  std::string x_dir;
  UniqueFd x_listener;
  std::unique_ptr<HttpServer> x_server;
  AsioThread x_thread;
};

}  // namespace lethe
