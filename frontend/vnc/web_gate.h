// What stands behind the port for browsers: the noVNC page, and VNC over WebSocket. Browsers open
// connections in advance and leave them silent, so VNC itself, whose clients wait for the server to
// speak, has a port of its own. Non-blocking; one thread.
#pragma once

#include <poll.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace lethe::gui {

class WebGate {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kConnectionsMax = 32;  // further ones are closed
  static constexpr std::chrono::milliseconds kRequestTime{
      10'000};  // from the connection to the answer's end
  static constexpr size_t kFileBytesMax = 4 << 20;

  // `files` is a folder with noVNC's core/ and vendor/; may be missing: the page says so.
  WebGate(unsigned port, std::string files, std::function<void(UniqueFd)> to_websocket)
      : x_port(port), x_files(std::move(files)), x_to_websocket(std::move(to_websocket)) {}

  void add(UniqueFd socket);
  void add_to(std::vector<pollfd>& waiting) const;
  // Until when something has to be done at the latest; Clock::time_point::max() if nothing is.
  [[nodiscard]] Clock::time_point deadline() const;
  // After each poll.
  void process();
  [[nodiscard]] size_t connections() const { return x_connections.size(); }

 private:
  struct Connection {
    UniqueFd socket;
    Clock::time_point since;
    std::string answer;  // what is left to send
    bool answering = false;
  };
  // False: it is done with.
  bool look(Connection& connection);
  bool read_request(Connection& connection);
  bool send_answer(Connection& connection);
  [[nodiscard]] std::string answer_for(const std::string& path) const;

  unsigned x_port;
  std::string x_files;
  std::function<void(UniqueFd)> x_to_websocket;
  std::vector<Connection> x_connections;
};

}  // namespace lethe::gui
