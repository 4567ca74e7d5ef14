#include "guest-tests/lab/rfb_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace lethe {

namespace {

constexpr uint32_t kSideMax = 16384;
constexpr uint32_t kEncodingRaw = 0;
constexpr uint32_t kEncodingDesktopSize = 0xFFFF'FF21;  // -223

[[noreturn]] void give_up(const char* what) {
  std::fprintf(stderr, "vnc_probe: %s\n", what);
  std::exit(1);
}

void put16(std::vector<uint8_t>& message, uint32_t value) {
  message.push_back(static_cast<uint8_t>(value >> 8));
  message.push_back(static_cast<uint8_t>(value));
}
void put32(std::vector<uint8_t>& message, uint32_t value) {
  put16(message, value >> 16);
  put16(message, value & 0xFFFF);
}

}  // namespace

RfbClient::RfbClient(const std::string& socket_path, Clock::time_point deadline)
    : x_deadline(deadline) {
  connect(socket_path);
  handshake();
  ask(false);
}

RfbClient::~RfbClient() { close(x_fd); }

void RfbClient::connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) give_up("the socket's path is too long");
  std::copy(path.begin(), path.end(), address.sun_path);
  while (true) {
    x_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (x_fd < 0) give_up("no socket");
    // SAFETY: the sockets' interface takes every kind of address as a sockaddr.
    if (::connect(x_fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return;
    close(x_fd);
    if (Clock::now() > x_deadline) give_up("no VNC server at the socket");
    usleep(50'000);
  }
}

void RfbClient::handshake() {
  char version[12];
  read(version, sizeof version);
  if (std::memcmp(version, "RFB 003.008\n", sizeof version) != 0) give_up("not RFB 3.8");
  write({version, version + sizeof version});
  bool none = false;
  for (uint8_t left = read8(); left > 0; --left) none |= read8() == 1;
  if (!none) give_up("the server wants a password");
  write({1});
  if (read32() != 0) give_up("the server refused us");
  write({1});  // shared
  const uint32_t width = read16();
  resize(width, read16());
  skip(16);
  skip(read32());
  std::vector<uint8_t> message{0, 0, 0, 0, 32, 24, 0, 1};  // SetPixelFormat: little endian
  for (const uint32_t maximum : {255u, 255u, 255u}) put16(message, maximum);
  put32(message, 0x1008'0000);  // the shifts, padding
  put32(message, 0x0000'0200);  // padding; SetEncodings,
  put16(message, 2);
  put32(message, kEncodingRaw);
  put32(message, kEncodingDesktopSize);
  write(message);
}

void RfbClient::ask(bool incremental) {
  std::vector<uint8_t> message{3, static_cast<uint8_t>(incremental)};
  for (const uint32_t value : {0u, 0u, x_width, x_height}) put16(message, value);
  write(message);
}

void RfbClient::press(uint32_t keysym) {
  std::vector<uint8_t> message;
  for (const uint32_t down : {1u, 0u}) {
    put16(message, 0x0400 | down);
    put16(message, 0);
    put32(message, keysym);
  }
  write(message);
}

bool RfbClient::update(std::chrono::milliseconds wait) {
  const Clock::time_point end = std::min(Clock::now() + wait, x_deadline);
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    if (!readable(std::chrono::milliseconds(std::max<int64_t>(left, 0)))) return false;
    switch (read8()) {
      case 0:
        if (read_rectangles()) return true;
        break;
      case 1:  // SetColourMapEntries
        skip(3);
        skip(size_t{read16()} * 6);
        break;
      case 2:
        break;  // Bell
      case 3:   // ServerCutText
        skip(3);
        skip(read32());
        break;
      default:
        give_up("an unknown message of the server");
    }
  }
}

// True if there were pixels.
bool RfbClient::read_rectangles() {
  skip(1);
  bool pixels = false;
  bool resized = false;
  for (uint16_t left = read16(); left > 0; --left) {
    const uint32_t x = read16();
    const uint32_t y = read16();
    const uint32_t width = read16();
    const uint32_t height = read16();
    const uint32_t encoding = read32();
    if (encoding == kEncodingRaw) {
      read_raw(x, y, width, height);
      pixels = true;
    } else if (encoding == kEncodingDesktopSize) {
      resize(width, height);
      resized = true;
    } else {
      give_up("an encoding that we did not ask for");
    }
  }
  x_updated_at = Clock::now();
  ask(!resized);
  return pixels;
}

void RfbClient::read_raw(uint32_t x, uint32_t y, uint32_t width, uint32_t height) {
  if (x + width > x_width || y + height > x_height) give_up("a rectangle outside the screen");
  for (uint32_t line = y; line < y + height; ++line)
    read(&x_pixels[size_t{line} * x_width + x], size_t{width} * 4);
}

void RfbClient::resize(uint32_t width, uint32_t height) {
  if (width > kSideMax || height > kSideMax) give_up("the screen is too large");
  x_width = width;
  x_height = height;
  x_pixels.assign(size_t{width} * height, 0);
}

bool RfbClient::readable(std::chrono::milliseconds wait) const {
  pollfd waiting{x_fd, POLLIN, 0};
  return poll(&waiting, 1, static_cast<int>(wait.count()) + 1) == 1;
}

void RfbClient::read(void* to, size_t bytes) {
  auto* at = static_cast<uint8_t*>(to);
  x_bytes += bytes;
  while (bytes > 0) {
    const ssize_t got = recv(x_fd, at, bytes, MSG_DONTWAIT);
    if (got > 0) {
      at += got;
      bytes -= static_cast<size_t>(got);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      give_up("the server hung up");
    } else {
      (void)readable(std::chrono::milliseconds(1000));
      if (Clock::now() > x_deadline) give_up("the deadline passed in the middle of a message");
    }
  }
}

void RfbClient::skip(size_t bytes) {
  uint8_t sink[256];
  for (; bytes > 0; bytes -= std::min(bytes, sizeof sink)) read(sink, std::min(bytes, sizeof sink));
}

void RfbClient::write(const std::vector<uint8_t>& message) {
  if (send(x_fd, message.data(), message.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(message.size()))
    give_up("the server takes nothing");
}

uint8_t RfbClient::read8() {
  uint8_t value = 0;
  read(&value, 1);
  return value;
}
uint16_t RfbClient::read16() {
  const uint8_t high = read8();
  return static_cast<uint16_t>(high << 8 | read8());
}
uint32_t RfbClient::read32() {
  const uint32_t high = read16();
  return high << 16 | read16();
}

}  // namespace lethe
