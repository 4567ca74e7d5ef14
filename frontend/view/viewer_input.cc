// The viewer's keyboard and pointer.
#include <linux/input-event-codes.h>

#include <cmath>

#include "frontend/view/scancodes.h"
#include "frontend/view/viewer.h"

namespace lethe::gui {
namespace {

constexpr const char* kGrabbed = " - keyboard grabbed, Ctrl+Alt+G frees it";

std::optional<uint32_t> evdev_of_button(uint8_t button) {
  switch (button) {
    case SDL_BUTTON_LEFT:
      return BTN_LEFT;
    case SDL_BUTTON_MIDDLE:
      return BTN_MIDDLE;
    case SDL_BUTTON_RIGHT:
      return BTN_RIGHT;
    case SDL_BUTTON_X1:
      return BTN_SIDE;
    case SDL_BUTTON_X2:
      return BTN_EXTRA;
    default:
      return std::nullopt;
  }
}

// The whole notches of a movement; what is left stays in `rest`.
int32_t take_notches(double& rest, double by) {
  rest += by;
  const double whole = std::trunc(rest);
  rest -= whole;
  return static_cast<int32_t>(std::clamp(whole, -100.0, 100.0));
}

}  // namespace

void Viewer::release_keys(GuestWindow& window) {
  if (x_client)
    for (const uint32_t code : window.keys_down) x_client->send_key(window.surface(), code, false);
  window.keys_down.clear();
}

void Viewer::set_focus(GuestWindow* window) {
  if (x_focus == window) return;
  if (x_focus != nullptr) {
    release_keys(*x_focus);
    if (x_client) x_client->send_focus(x_focus->surface(), false);
    SDL_SetWindowKeyboardGrab(x_focus->window(), SDL_FALSE);
  }
  x_focus = window;
  if (window == nullptr || !x_client) return;
  x_client->send_focus(window->surface(), true);
  set_grab(x_grabbed);
}

void Viewer::set_grab(bool grab) {
  x_grabbed = grab;
  if (x_focus == nullptr) return;
  SDL_SetWindowKeyboardGrab(x_focus->window(), grab ? SDL_TRUE : SDL_FALSE);
  for (const auto& [surface, window] : x_windows) window->set_title(grab ? kGrabbed : "");
}

bool Viewer::on_hot_key(GuestWindow& window, SDL_Scancode key) {
  switch (key) {
    case SDL_SCANCODE_F:
      window.toggle_full_screen();
      return true;
    case SDL_SCANCODE_G:
      set_grab(!x_grabbed);
      return true;
    case SDL_SCANCODE_S:
      x_options.scale = x_options.scale == Scale::kFit ? Scale::kInteger : Scale::kFit;
      for (const auto& [surface, each] : x_windows) each->mark_dirty();
      return true;
    case SDL_SCANCODE_1:
      window.to_guest_size();
      return true;
    case SDL_SCANCODE_Q:
      x_quit = true;
      return true;
    default:
      return false;
  }
}

void Viewer::on_key(const SDL_KeyboardEvent& event) {
  GuestWindow* window = by_window(event.windowID);
  if (window == nullptr || event.repeat != 0) return;  // the guest repeats by itself
  const SDL_Scancode key = event.keysym.scancode;
  const bool down = event.type == SDL_KEYDOWN;
  if (!x_client) {
    // The VM has ended.
    if (down && key == SDL_SCANCODE_Q) x_quit = true;
    if (down && key == SDL_SCANCODE_R) {
      x_focus = nullptr;
      if (const auto result = connect(); result)
        x_windows.clear();
      else
        fprintf(stderr, "lethe-view: %s\n", result.error().text.c_str());
    }
    return;
  }
  const bool ours = (event.keysym.mod & KMOD_CTRL) != 0 && (event.keysym.mod & KMOD_ALT) != 0;
  if (down && ours) {
    // The guest has seen Ctrl and Alt go down: not the rest of it.
    if (on_hot_key(*window, key)) return release_keys(*window);
  }
  const auto code = evdev_of_scancode(key);
  if (!code) return;
  if (down ? !window->keys_down.insert(*code).second : window->keys_down.erase(*code) == 0) return;
  x_client->send_key(window->surface(), *code, down);
}

void Viewer::point_at(GuestWindow& window, int x, int y) {
  if (!x_client) return;
  const Point at = window.picture_point(x, y, x_options.scale);
  x_client->send_motion(window.surface(), at.x, at.y);
}

void Viewer::on_button(const SDL_MouseButtonEvent& event) {
  GuestWindow* window = by_window(event.windowID);
  const auto code = evdev_of_button(event.button);
  if (window == nullptr || !x_client || !code) return;
  point_at(*window, event.x, event.y);
  x_client->send_button(window->surface(), *code, event.state == SDL_PRESSED);
}

void Viewer::on_wheel(const SDL_MouseWheelEvent& event) {
  GuestWindow* window = by_window(event.windowID);
  if (window == nullptr || !x_client) return;
  const double turn = event.direction == SDL_MOUSEWHEEL_FLIPPED ? -1 : 1;
  const int32_t vertical = take_notches(x_wheel_y, turn * static_cast<double>(event.preciseY));
  const int32_t horizontal = take_notches(x_wheel_x, turn * static_cast<double>(event.preciseX));
  if (vertical != 0 || horizontal != 0)
    x_client->send_wheel(window->surface(), vertical, horizontal);
}

}  // namespace lethe::gui
