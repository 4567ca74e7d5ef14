// For tests of virtio-vsock: a device with its listener in a directory of its own, the guest's
// driver, and Unix sockets of the host's.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <thread>

#include "base/packet.h"
#include "base/test_util.h"
#include "devices/virtio/vsock/fake_vsock_driver.h"

namespace lethe {

inline sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  LETHE_ASSERT(path.size() < sizeof address.sun_path);
  path.copy(address.sun_path, path.size());
  return address;
}

inline UniqueFd listen_at(const std::string& path, int backlog = 64) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const sockaddr_un address = unix_address(path);
  LETHE_ASSERT(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  LETHE_ASSERT(::listen(fd.get(), backlog) == 0);
  return fd;
}

// A stream socket of the host's, with deadlines. Non-blocking.
class HostSocket {
 public:
  explicit HostSocket(UniqueFd fd) : x_fd(std::move(fd)) {}
  static HostSocket connect(const std::string& path) {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_un address = unix_address(path);
    LETHE_ASSERT(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
                 0);
    LETHE_ASSERT(::fcntl(fd.get(), F_SETFL, O_NONBLOCK) == 0);
    return HostSocket(std::move(fd));
  }
  // Waits for a client of a listener.
  static HostSocket accept(const UniqueFd& listener) {
    LETHE_ASSERT(wait(listener.get(), POLLIN));
    UniqueFd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    LETHE_ASSERT(fd.valid());
    return HostSocket(std::move(fd));
  }

  [[nodiscard]] int fd() const { return x_fd.get(); }
  void close() { x_fd.reset(); }
  void shut(int how) { EXPECT_EQ(::shutdown(x_fd.get(), how), 0) << errno_text(errno); }
  // Writes all of it; false if that is not taken in time, or refused.
  bool write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(x_fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent > 0) bytes.remove_prefix(static_cast<size_t>(sent));
      if (sent < 0 && errno != EAGAIN) return false;
      if (sent < 0 && !wait(x_fd.get(), POLLOUT)) return false;
    }
    return true;
  }
  // What the socket takes now.
  size_t write_some(std::string_view bytes) {
    const ssize_t sent = ::send(x_fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    return sent < 0 ? 0 : static_cast<size_t>(sent);
  }
  // `bytes` of them, or less at the end, or after the deadline.
  std::string read(size_t bytes) {
    std::string all;
    while (all.size() < bytes) {
      std::string piece(bytes - all.size(), '\0');
      const ssize_t got = ::recv(x_fd.get(), piece.data(), piece.size(), 0);
      if (got == 0 || (got < 0 && errno != EAGAIN)) break;
      if (got > 0) all.append(piece, 0, static_cast<size_t>(got));
      if (got < 0 && !wait(x_fd.get(), POLLIN)) break;
    }
    return all;
  }
  std::string read_some(size_t bytes) {
    std::string piece(bytes, '\0');
    const ssize_t got = ::recv(x_fd.get(), piece.data(), piece.size(), 0);
    piece.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return piece;
  }
  // A line, its end included.
  std::string read_line() {
    std::string line;
    while (line.empty() || line.back() != '\n') {
      const std::string next = read(1);
      if (next.empty()) break;
      line += next;
    }
    return line;
  }
  // Whether the other side closes it, with nothing more to read, in time.
  bool closed() {
    while (wait(x_fd.get(), POLLIN)) {
      char byte = 0;
      const ssize_t got = ::recv(x_fd.get(), &byte, 1, 0);
      if (got > 0) return false;
      if (got == 0 || errno != EAGAIN) return true;
    }
    return false;
  }
  static bool wait(int fd, short events) {
    pollfd poll_fd{.fd = fd, .events = events, .revents = 0};
    return ::poll(&poll_fd, 1, static_cast<int>(FakeTransport::kPatience.count())) == 1;
  }

 private:
  UniqueFd x_fd;
};

inline constexpr GuestMemory::Range kVsockTestRam{.start = GuestAddr{0}, .size = 64 << 20};

class VsockGuest {
 public:
  explicit VsockGuest(FakeVsockDriver::Options options = {}, VsockLimits limits = {},
                      bool start = true)
      : x_directory(make_directory()),
        x_listener(listen_at(path())),
        x_device(VsockDevice::create({.cid = FakeVsockDriver::kCid,
                                      .path = path(),
                                      .listener = x_listener.get(),
                                      .limits = limits})
                     .value()),
        x_driver(*x_memory, *x_device, options) {
    if (start) x_driver.start();
  }
  ~VsockGuest() { std::filesystem::remove_all(x_directory); }
  VsockGuest(const VsockGuest&) = delete;
  VsockGuest& operator=(const VsockGuest&) = delete;

  [[nodiscard]] std::string path() const { return x_directory + "/vsock.sock"; }
  [[nodiscard]] std::string path(uint32_t port) const { return fmt::format("{}_{}", path(), port); }
  VsockDevice& device() { return *x_device; }
  FakeVsockDriver& driver() { return x_driver; }
  const VsockCounters& counters() { return x_device->counters(); }

  // A stream opened from the host to the guest's port; `ports` are what it got.
  HostSocket open_from_host(VsockPorts& ports, uint32_t guest_port = 5000) {
    HostSocket host = HostSocket::connect(path());
    EXPECT_TRUE(host.write(fmt::format("CONNECT {}\n", guest_port)));
    const auto request = x_driver.receive_content();
    EXPECT_TRUE(request && request->header.op == VIRTIO_VSOCK_OP_REQUEST);
    EXPECT_EQ(request->header.dst_port, guest_port);
    ports = {.host = request->header.src_port, .guest = guest_port};
    EXPECT_TRUE(x_driver.send(VIRTIO_VSOCK_OP_RESPONSE, ports));
    EXPECT_EQ(host.read_line(), fmt::format("OK {}\n", ports.host));
    return host;
  }
  // The other way: `listener` listens on path(ports.host).
  HostSocket open_from_guest(const UniqueFd& listener, VsockPorts ports) {
    EXPECT_TRUE(x_driver.send(VIRTIO_VSOCK_OP_REQUEST, ports));
    const auto response = x_driver.receive_content();
    EXPECT_TRUE(response && response->header.op == VIRTIO_VSOCK_OP_RESPONSE);
    return HostSocket::accept(listener);
  }
  // The next packet but for credit is this.
  [[nodiscard]] bool expect_op(uint16_t op, VsockPorts ports, uint32_t flags = 0) {
    const auto packet = x_driver.receive_content();
    return packet && packet->header.op == op && packet->header.flags == flags &&
           packet->header.src_port == ports.host && packet->header.dst_port == ports.guest;
  }

 private:
  static std::string make_directory() {
    char name[] = "/tmp/lethe-vsock-XXXXXX";
    LETHE_ASSERT(::mkdtemp(name) != nullptr);
    return name;
  }
  const std::string x_directory;
  UniqueFd x_listener;
  std::unique_ptr<GuestMemory> x_memory = GuestMemory::create({&kVsockTestRam, 1}, {}).value();
  std::unique_ptr<VsockDevice> x_device;
  FakeVsockDriver x_driver;
};

}  // namespace lethe
