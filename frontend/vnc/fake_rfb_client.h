// A VNC client for tests: RFB 3.8 (RFC 6143), raw encoding, 32 bits a pixel. Every read has a
// deadline. One thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/unique_fd.h"
#include "frontend/picture.h"

namespace lethe::gui {

class FakeRfbClient {
 public:
  // Waits for the server to listen.
  [[nodiscard]] bool connect_unix(const std::string& path);
  [[nodiscard]] bool connect_tcp(uint16_t port);

  // The handshake without a password; false: the server wants one, or anything else is wrong.
  [[nodiscard]] bool greet();
  // The security type that the server offers first; 0: none. Instead of greet().
  [[nodiscard]] int offered_security();

  // Asks for the picture (all of it, or what has changed) and takes one update.
  [[nodiscard]] bool update(bool incremental);
  // Until the picture is this one.
  [[nodiscard]] bool wait_for_picture(const Picture& expected);
  [[nodiscard]] const Picture& picture() const { return picture_; }
  [[nodiscard]] uint64_t pixels_received() const { return pixels_received_; }

  [[nodiscard]] bool key(uint32_t keysym, bool down);
  [[nodiscard]] bool pointer(uint16_t x, uint16_t y, uint8_t buttons);
  [[nodiscard]] bool cut_text(const std::string& text);
  [[nodiscard]] bool send_bytes(const std::string& bytes);
  [[nodiscard]] std::string receive_some();  // what comes first; empty: nothing in time
  [[nodiscard]] bool closed();               // the server has, within the deadline
  [[nodiscard]] int fd() const { return socket_.get(); }

 private:
  [[nodiscard]] bool receive(void* bytes, size_t size);
  [[nodiscard]] bool take_rectangle();
  UniqueFd socket_;
  Picture picture_;
  uint64_t pixels_received_ = 0;
};

}  // namespace lethe::gui
