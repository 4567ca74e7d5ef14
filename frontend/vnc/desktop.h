// One desktop of all that a VM shows, for VNC, which has one picture: the windows, each at its
// place, once a guest shows some; else a screen. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "frontend/client.h"
#include "frontend/picture.h"

namespace lethe::gui {

class Desktop {
 public:
  enum class Show : uint8_t { kAuto, kScreen, kWindows };
  Desktop(Show show, uint32_t output) : x_show(show), x_output(output) {}

  // What the client hears.
  void set_surface(const SurfaceState& surface);
  void remove_surface(uint64_t surface);
  void set_frame(uint64_t surface, const FrameView& frame);

  [[nodiscard]] uint32_t width() const { return x_width; }
  [[nodiscard]] uint32_t height() const { return x_height; }
  // What changed since the last call, as a rectangle around it; all of it after a new size.
  [[nodiscard]] Rect take_damage();
  // Draws a rectangle of the desktop. `to` is the pixel of the rectangle's first corner, lines are
  // `stride` pixels apart; pixels are what VNC clients get: red in the lowest byte.
  void draw(const Rect& rect, uint32_t* to, size_t stride) const;

  struct Hit {
    uint64_t surface = 0;
    int32_t x = 0, y = 0;  // in it
  };
  // The surface there, the uppermost. Nothing: background.
  [[nodiscard]] std::optional<Hit> at(int32_t x, int32_t y) const;
  // A place of the desktop as one of the surface, which may be outside of it (a drag).
  [[nodiscard]] Hit inside(uint64_t surface, int32_t x, int32_t y) const;
  // Puts a window and what belongs to it above the others.
  void raise(uint64_t surface);
  // Menus and tooltips take no focus.
  [[nodiscard]] bool takes_focus(uint64_t surface) const;
  // Where keys go before the user has clicked anything: the screen, else the uppermost window.
  [[nodiscard]] std::optional<uint64_t> first_focus() const;
  // The screen, if the desktop is one.
  [[nodiscard]] std::optional<uint64_t> screen() const;

  static constexpr uint32_t kEmptyWidth = 640, kEmptyHeight = 480;  // nothing to show yet

 private:
  struct Shown {
    SurfaceState state;
    Picture picture;
  };
  [[nodiscard]] bool visible(const Shown& shown) const;
  [[nodiscard]] Rect on_desktop(const Shown& shown) const;  // clipped; its picture
  [[nodiscard]] bool shows_windows() const;
  void layout();
  void damage(const Rect& rect);

  Show x_show;
  uint32_t x_output;
  std::map<uint64_t, Shown> x_surfaces;
  std::vector<uint64_t> x_stack;  // all windows, the lowest first
  uint32_t x_width = kEmptyWidth, x_height = kEmptyHeight;
  bool x_windows = false;  // what layout() found
  Rect x_damage{0, 0, kEmptyWidth, kEmptyHeight};
};

}  // namespace lethe::gui
