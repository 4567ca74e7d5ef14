// A VNC client (RFC 6143) for measurements: on a Unix socket, without a password, raw encoding
// only, 32 bits a pixel. Every wait ends at the deadline. Failures end the program (exit code 1):
// it is the tail of a benchmark.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lethe {

class RfbClient {
 public:
  using Clock = std::chrono::steady_clock;

  // Connects (again and again: the server may not be up yet) and asks for the whole screen.
  RfbClient(const std::string& socket_path, Clock::time_point deadline);
  ~RfbClient();
  RfbClient(const RfbClient&) = delete;
  RfbClient& operator=(const RfbClient&) = delete;

  void press(uint32_t keysym);  // and release

  // The next FramebufferUpdate with pixels, applied, and the next one asked for. False: nothing
  // came within `wait`.
  [[nodiscard]] bool update(std::chrono::milliseconds wait);

  [[nodiscard]] uint32_t width() const { return x_width; }
  [[nodiscard]] uint32_t height() const { return x_height; }
  // X8R8G8B8 without the X. Within the screen.
  [[nodiscard]] uint32_t pixel(uint32_t x, uint32_t y) const {
    return x_pixels[size_t{y} * x_width + x] & 0xFF'FFFF;
  }
  // When the last update was complete, and before the next one was asked for.
  [[nodiscard]] Clock::time_point updated_at() const { return x_updated_at; }
  [[nodiscard]] uint64_t bytes() const { return x_bytes; }  // received so far, all

 private:
  void connect(const std::string& path);
  void handshake();
  void ask(bool incremental);
  bool read_rectangles();
  void read_raw(uint32_t x, uint32_t y, uint32_t width, uint32_t height);
  void resize(uint32_t width, uint32_t height);
  [[nodiscard]] bool readable(std::chrono::milliseconds wait) const;
  void read(void* to, size_t bytes);
  void skip(size_t bytes);
  void write(const std::vector<uint8_t>& message);
  uint8_t read8();
  uint16_t read16();
  uint32_t read32();

  Clock::time_point x_deadline;
  int x_fd = -1;
  uint32_t x_width = 0;
  uint32_t x_height = 0;
  std::vector<uint32_t> x_pixels;
  Clock::time_point x_updated_at;
  uint64_t x_bytes = 0;
};

}  // namespace lethe
