// libvncserver, wrapped: one framebuffer, its clients, what they type and point at. The only file
// that sees rfb.h is vnc_screen.cc. One thread; one object a process (libvncserver's settings are
// global).
#pragma once

#include <poll.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "frontend/client.h"

namespace lethe::gui {

// What VNC clients do. Numbers are as they came: any.
class VncUser {
 public:
  virtual ~VncUser() = default;
  virtual void keysym(uint32_t keysym, bool down) = 0;
  virtual void pointer(int32_t x, int32_t y, uint8_t buttons) = 0;  // RFB's mask
  virtual void desktop_size(uint32_t width, uint32_t height) = 0;   // what a client asks for
  virtual void user_gone() = 0;  // a client that has typed or pointed
  virtual void no_client() = 0;  // the last one, of whatever kind
};

class VncScreen {
 public:
  static constexpr int kClientsMax = 16;
  // A client that asked for a picture and then takes nothing of it for so long is dropped; others
  // wait meanwhile.
  static constexpr int kClientWaitMs = 5000;

  // `password`: empty for none. Draws nothing yet: black.
  [[nodiscard]] static Result<std::unique_ptr<VncScreen>> create(const std::string& name,
                                                                 const std::string& password,
                                                                 VncUser& user);
  ~VncScreen();

  // Serves a connected socket. `websocket`: a WebSocket's greeting is waiting in it; the library
  // would answer one anywhere, but elsewhere nobody has checked where it comes from: it is closed.
  void add_client(UniqueFd socket, bool websocket);
  [[nodiscard]] int clients() const;
  // When a password was wrong last: the caller holds new connections back for a moment.
  [[nodiscard]] std::chrono::steady_clock::time_point wrong_password_at() const;

  // All black, of another size, if it is another one.
  [[nodiscard]] bool resize(uint32_t width, uint32_t height);
  [[nodiscard]] uint32_t* pixels();  // lines are stride() pixels apart, red in the lowest byte
  [[nodiscard]] size_t stride() const;
  void damage(const Rect& rect);
  void set_cursor(const CursorView* cursor);  // null or without pixels: none

  // What to poll for, added to `waiting`; then, after each poll, process().
  void add_to(std::vector<pollfd>& waiting) const;
  void process();

  struct Impl;

 private:
  VncScreen() = default;
  std::unique_ptr<Impl> x_impl;
};

}  // namespace lethe::gui
