// What stands behind the loopback port: one port for VNC, for VNC over WebSocket, and for the noVNC
// page. A new connection is looked at before it is served: who says "GET " is a browser; who waits
// for our greeting is a VNC client. Non-blocking; one thread.
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
  static constexpr size_t kConnectionsMax = 32;                   // further ones are closed
  static constexpr std::chrono::milliseconds kSilence{150};       // then it is a VNC client
  static constexpr std::chrono::milliseconds kRequestTime{5000};  // for a whole request and answer
  static constexpr size_t kFileBytesMax = 4 << 20;

  // `files` is a folder with noVNC's core/ and vendor/; may be missing: the page says so.
  WebGate(unsigned port, std::string files, std::function<void(UniqueFd)> to_vnc)
      : x_port(port), x_files(std::move(files)), x_to_vnc(std::move(to_vnc)) {}

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
    bool speaks = false;  // it has said something
    std::string answer;   // what is left to send
    bool answering = false;
  };
  // False: it is done with.
  bool look(Connection& connection);
  bool read_request(Connection& connection);
  bool send_answer(Connection& connection);
  [[nodiscard]] std::string answer_for(const std::string& path) const;

  unsigned x_port;
  std::string x_files;
  std::function<void(UniqueFd)> x_to_vnc;
  std::vector<Connection> x_connections;
};

}  // namespace lethe::gui
