// For tests: a vsock.sock as a VM has one, and behind it a stand-in for the guest, a function that
// gets each connection once CONNECT was answered.
#pragma once

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "base/unix_socket.h"

namespace lethe {

// Sends all of it; who has gone, or takes nothing for the socket's own patience, gets a part.
inline void say(const UniqueFd& fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

class FakeVsock {
 public:
  using Guest = std::function<void(UniqueFd)>;
  // `guest` runs on a thread of its own for each connection; the destructor waits for all of them.
  // A null one: nobody listens in the guest.
  FakeVsock(const std::string& path, Guest guest)
      : x_guest(std::move(guest)), x_listener(listen_at(path)) {
    x_thread = std::thread([this] { accept_all(); });
  }
  ~FakeVsock() {
    (void)::eventfd_write(x_stop.get(), 1);
    x_thread.join();
    for (std::thread& thread : x_connections) thread.join();
  }
  [[nodiscard]] uint32_t last_port() const { return x_last_port; }
  [[nodiscard]] int connections() const { return x_accepted; }

 private:
  static UniqueFd listen_at(const std::string& path) {
    (void)::unlink(path.c_str());
    return std::move(*listen_unix(path));
  }
  void accept_all() {
    for (;;) {
      std::array<pollfd, 2> slots = {{{x_listener.get(), POLLIN, 0}, {x_stop.get(), POLLIN, 0}}};
      (void)::poll(slots.data(), slots.size(), -1);
      if (slots[1].revents != 0) return;
      UniqueFd client(::accept4(x_listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client.valid()) continue;
      ++x_accepted;
      if (x_guest == nullptr) continue;
      x_connections.emplace_back(
          [this, fd = std::move(client)]() mutable { answer(std::move(fd)); });
    }
  }
  void answer(UniqueFd client) {
    std::string line;
    char c = 0;
    while (::recv(client.get(), &c, 1, 0) == 1 && c != '\n') line += c;
    if (!line.starts_with("CONNECT ")) return;
    x_last_port = static_cast<uint32_t>(std::stoul(line.substr(8)));
    (void)::send(client.get(), "OK 1073741824\n", 14, MSG_NOSIGNAL);
    x_guest(std::move(client));
  }

  const Guest x_guest;
  const UniqueFd x_listener;
  const UniqueFd x_stop{::eventfd(0, EFD_CLOEXEC)};
  std::atomic<uint32_t> x_last_port{0};
  std::atomic<int> x_accepted{0};
  std::vector<std::thread> x_connections;  // of the accepting thread, until it has ended
  std::thread x_thread;
};

}  // namespace lethe
