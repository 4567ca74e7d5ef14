// For tests: an X server of their own (Xvfb), what is to be seen on it, and a user's hands (XTest).
// One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "frontend/picture.h"

namespace lethe::gui {

class XServer {
 public:
  // A screen of 1024x768. Xvfb ends with the object.
  XServer();
  ~XServer();
  XServer(const XServer&) = delete;
  XServer& operator=(const XServer&) = delete;

  [[nodiscard]] bool running() const { return x_display != nullptr; }
  [[nodiscard]] const std::string& name() const { return x_name; }  // ":99", for DISPLAY

  struct Window {
    unsigned long id = 0;
    std::string title;
    int x = 0, y = 0;
    uint32_t width = 0, height = 0;
    bool viewable = false;
    bool override_redirect = false;
    unsigned long transient_for = 0;
  };
  // All windows below the root that have a title.
  [[nodiscard]] std::vector<Window> windows() const;
  // A viewable one whose title has `title`, within the patience.
  [[nodiscard]] std::optional<Window> wait_for_window(
      const std::string& title, std::chrono::milliseconds patience = kPatience) const;
  [[nodiscard]] std::optional<Picture> screenshot(const Window& window) const;
  // Until the window looks so.
  [[nodiscard]] bool wait_for_picture(const Window& window, const Picture& expected,
                                      std::chrono::milliseconds patience = kPatience) const;

  void key(unsigned keysym, bool down) const;
  void move_pointer(int x, int y) const;
  void button(unsigned number, bool down) const;
  void resize(const Window& window, uint32_t width, uint32_t height) const;
  void ask_to_close(const Window& window) const;
  void focus(const Window& window) const;
  struct CursorImage {
    uint32_t width = 0, height = 0, hot_x = 0, hot_y = 0;
    std::vector<uint32_t> pixels;  // 0xAARRGGBB, premultiplied
    bool operator==(const CursorImage&) const = default;
  };
  // What the pointer looks like now.
  [[nodiscard]] CursorImage cursor() const;
  // Whether a window manager serves: it has shown a window, in a frame of its own. One that still
  // starts loses those that are mapped meanwhile, and SDL waits for them for ever.
  [[nodiscard]] bool managed() const;
  // Where the window's corner is on the screen: x, y; those in Window are relative to its parent.
  [[nodiscard]] std::pair<int, int> place_of(const Window& window) const;
  // Whether some client gets all keys.
  [[nodiscard]] bool keyboard_grabbed() const;

  static constexpr std::chrono::milliseconds kPatience{10'000};

 private:
  pid_t x_pid = -1;
  std::string x_name;
  void* x_display = nullptr;  // Display*
};

}  // namespace lethe::gui
