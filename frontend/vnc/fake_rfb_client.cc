#include "frontend/vnc/fake_rfb_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <vector>

#include "base/test_util.h"

namespace lethe::gui {
namespace {

constexpr int kPatienceMs = 10'000;

uint32_t big32(const uint8_t* bytes) {
  return static_cast<uint32_t>(bytes[0]) << 24 | static_cast<uint32_t>(bytes[1]) << 16 |
         static_cast<uint32_t>(bytes[2]) << 8 | bytes[3];
}
uint32_t big16(const uint8_t* bytes) { return static_cast<uint32_t>(bytes[0] << 8 | bytes[1]); }

void put16(std::string& to, uint32_t value) {
  to += static_cast<char>(value >> 8);
  to += static_cast<char>(value);
}
void put32(std::string& to, uint32_t value) {
  put16(to, value >> 16);
  put16(to, value & 0xFFFF);
}

}  // namespace

bool FakeRfbClient::connect_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  return eventually([&] {
    socket_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
           0;
  });
}

bool FakeRfbClient::connect_tcp(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return eventually([&] {
    socket_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
           0;
  });
}

bool FakeRfbClient::receive(void* bytes, size_t size) {
  auto* at = static_cast<char*>(bytes);
  while (size > 0) {
    pollfd waiting{.fd = socket_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&waiting, 1, kPatienceMs) != 1) return false;
    const ssize_t got = ::recv(socket_.get(), at, size, 0);
    if (got <= 0) return false;
    at += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

bool FakeRfbClient::send_bytes(const std::string& bytes) {
  return ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(bytes.size());
}

std::string FakeRfbClient::receive_some() {
  char bytes[4096];
  pollfd waiting{.fd = socket_.get(), .events = POLLIN, .revents = 0};
  if (::poll(&waiting, 1, kPatienceMs) != 1) return "";
  const ssize_t got = ::recv(socket_.get(), bytes, sizeof bytes, 0);
  return {bytes, static_cast<size_t>(std::max<ssize_t>(got, 0))};
}

bool FakeRfbClient::closed() {
  char byte = 0;
  pollfd waiting{.fd = socket_.get(), .events = POLLIN, .revents = 0};
  while (::poll(&waiting, 1, kPatienceMs) == 1)
    if (::recv(socket_.get(), &byte, 1, 0) <= 0) return true;
  return false;
}

int FakeRfbClient::offered_security() {
  uint8_t version[12];
  uint8_t count = 0;
  if (!receive(version, sizeof version) || !send_bytes("RFB 003.008\n")) return 0;
  if (!receive(&count, 1) || count == 0) return 0;
  std::vector<uint8_t> types(count);
  return receive(types.data(), count) ? types[0] : 0;
}

bool FakeRfbClient::greet() {
  uint8_t result[4], init[24];
  if (offered_security() != 1 || !send_bytes("\x01") || !receive(result, sizeof result) ||
      big32(result) != 0 || !send_bytes("\x01") || !receive(init, sizeof init))
    return false;
  std::string name(big32(init + 20), '\0');
  if (!receive(name.data(), name.size())) return false;
  picture_ = Picture(big16(init), big16(init + 2));
  // Little endian, red in the third byte: our Pixel. Raw, and new sizes as they come.
  std::string setup("\0\0\0\0\x20\x18\0\x01\0\xFF\0\xFF\0\xFF\x10\x08\0\0\0\0", 20);
  setup += std::string("\x02\0\0\x02", 4);
  put32(setup, 0);
  put32(setup, 0xFFFF'FF21);  // DesktopSize
  return send_bytes(setup);
}

bool FakeRfbClient::take_rectangle() {
  uint8_t head[12];
  if (!receive(head, sizeof head)) return false;
  const uint32_t x = big16(head), y = big16(head + 2);
  const uint32_t width = big16(head + 4), height = big16(head + 6);
  if (big32(head + 8) == 0xFFFF'FF21) {
    picture_ = Picture(width, height);
    return true;
  }
  if (big32(head + 8) != 0 || x + width > picture_.width || y + height > picture_.height)
    return false;
  for (uint32_t line = y; line < y + height; ++line) {
    if (!receive(picture_.line(line) + x, width * sizeof(Pixel))) return false;
    for (uint32_t column = x; column < x + width; ++column) picture_.line(line)[column] &= 0xFFFFFF;
  }
  pixels_received_ += uint64_t{width} * height;
  return true;
}

bool FakeRfbClient::update(bool incremental) {
  std::string request(1, '\x03');
  request += incremental ? '\x01' : '\0';
  put16(request, 0);
  put16(request, 0);
  put16(request, picture_.width);
  put16(request, picture_.height);
  uint8_t head[4];
  if (!send_bytes(request) || !receive(head, sizeof head) || head[0] != 0) return false;
  for (uint32_t i = 0; i < big16(head + 2); ++i)
    if (!take_rectangle()) return false;
  return true;
}

bool FakeRfbClient::wait_for_picture(const Picture& expected) {
  bool whole = true;
  return eventually([&] {
           const uint32_t width = picture_.width;
           if (!update(!whole)) return true;  // no update within its deadline: not this picture
           whole = picture_.width != width;   // after a new size
           return picture_ == expected;
         }) &&
         picture_ == expected;
}

bool FakeRfbClient::key(uint32_t keysym, bool down) {
  std::string message(1, '\x04');
  message += down ? '\x01' : '\0';
  put16(message, 0);
  put32(message, keysym);
  return send_bytes(message);
}

bool FakeRfbClient::pointer(uint16_t x, uint16_t y, uint8_t buttons) {
  std::string message(1, '\x05');
  message += static_cast<char>(buttons);
  put16(message, x);
  put16(message, y);
  return send_bytes(message);
}

bool FakeRfbClient::cut_text(const std::string& text) {
  std::string message("\x06\0\0\0", 4);
  put32(message, static_cast<uint32_t>(text.size()));
  return send_bytes(message + text);
}

}  // namespace lethe::gui
