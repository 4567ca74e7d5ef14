// What VNC clients type and point at, to the guest.
#include <linux/input-event-codes.h>

#include "frontend/vnc/keysyms.h"
#include "frontend/vnc/vnc_server.h"

namespace lethe::gui {
namespace {

// Bits of RFB's button mask (RFC 6143, 7.5.5): three buttons, then the wheel's four directions.
constexpr uint32_t kButtons[] = {BTN_LEFT, BTN_MIDDLE, BTN_RIGHT};
constexpr uint8_t kWheelUp = 1 << 3, kWheelDown = 1 << 4, kWheelLeft = 1 << 5, kWheelRight = 1 << 6;
constexpr uint8_t kAnyButton = 7;

}  // namespace

void VncServer::release_keys() {
  if (x_focus != 0)
    for (const uint32_t code : x_keys_down) x_client->send_key(x_focus, code, false);
  x_keys_down.clear();
  x_codes_by_keysym.clear();
}

// Nothing may stay pressed that nobody can release. Which client holds what is not kept: others
// press theirs again.
void VncServer::release_all() {
  release_keys();
  if (x_drag != 0)
    for (int i = 0; i < 3; ++i)
      if ((x_buttons >> i & 1) != 0) x_client->send_button(x_drag, kButtons[i], false);
  x_buttons = 0;
  x_drag = 0;
}

void VncServer::set_focus(uint64_t surface) {
  if (surface == x_focus) return;
  release_keys();
  if (x_focus != 0) x_client->send_focus(x_focus, false);
  x_focus = surface;
  if (surface != 0) x_client->send_focus(surface, true);
}

void VncServer::send_key(uint32_t code, bool down_now) {
  if (down_now ? !x_keys_down.insert(code).second : x_keys_down.erase(code) == 0) return;
  x_client->send_key(x_focus, code, down_now);
}

void VncServer::keysym(uint32_t keysym, bool down_now) {
  if (x_focus == 0 || x_desktop.screen()) set_focus(x_desktop.first_focus().value_or(0));
  if (x_focus == 0) return;
  // What it pressed is released, whatever Shift makes of it now.
  if (const auto pressed = x_codes_by_keysym.find(keysym);
      !down_now && pressed != x_codes_by_keysym.end()) {
    send_key(pressed->second, false);
    x_codes_by_keysym.erase(pressed);
    return;
  }
  const auto key = key_of_keysym(keysym);
  if (!key) return;
  const KeyStroke stroke = key->stroke;
  if (!down_now) return send_key(stroke.code, false);
  // The client's keyboard may need another Shift for the character than the guest's.
  const bool left = down(KEY_LEFTSHIFT), right = down(KEY_RIGHTSHIFT);
  const bool shortcut = down(KEY_LEFTCTRL) || down(KEY_RIGHTCTRL) || down(KEY_LEFTALT) ||
                        down(KEY_LEFTMETA) || down(KEY_RIGHTMETA);
  const bool adjust = key->character && !shortcut && stroke.shift != (left || right);
  if (adjust && stroke.shift) send_key(KEY_LEFTSHIFT, true);
  if (adjust && left) send_key(KEY_LEFTSHIFT, false);
  if (adjust && right) send_key(KEY_RIGHTSHIFT, false);
  x_codes_by_keysym[keysym] = stroke.code;
  send_key(stroke.code, true);
  if (adjust && stroke.shift) send_key(KEY_LEFTSHIFT, false);
  if (adjust && left) send_key(KEY_LEFTSHIFT, true);
  if (adjust && right) send_key(KEY_RIGHTSHIFT, true);
}

void VncServer::pointer(int32_t x, int32_t y, uint8_t buttons) {
  // While a button is down, all goes to where it went down.
  const auto hit = x_drag != 0 ? std::optional(x_desktop.inside(x_drag, x, y)) : x_desktop.at(x, y);
  const bool moved = x != x_last_x || y != x_last_y;
  x_last_x = x;
  x_last_y = y;
  if (!hit || hit->surface == 0) {
    x_buttons = buttons;
    return;
  }
  if (moved || buttons != x_buttons) x_client->send_motion(hit->surface, hit->x, hit->y);
  if ((buttons & kAnyButton) != 0 && (x_buttons & kAnyButton) == 0) {
    x_drag = hit->surface;
    x_desktop.raise(hit->surface);
    if (x_desktop.takes_focus(hit->surface)) set_focus(hit->surface);
  }
  const uint64_t to = hit->surface;
  for (int i = 0; i < 3; ++i)
    if (((buttons ^ x_buttons) >> i & 1) != 0)
      x_client->send_button(to, kButtons[i], (buttons >> i & 1) != 0);
  const auto pressed = static_cast<uint8_t>(buttons & ~x_buttons);
  const int32_t vertical = ((pressed & kWheelUp) != 0 ? 1 : 0) - ((pressed & kWheelDown) != 0);
  const int32_t horizontal = ((pressed & kWheelRight) != 0 ? 1 : 0) - ((pressed & kWheelLeft) != 0);
  if (vertical != 0 || horizontal != 0) x_client->send_wheel(to, vertical, horizontal);
  x_buttons = buttons;
  if ((buttons & kAnyButton) == 0) x_drag = 0;
}

void VncServer::desktop_size(uint32_t width, uint32_t height) {
  if (const auto screen = x_desktop.screen())
    x_client->send_configure(*screen, 0, 0, width, height);
}

}  // namespace lethe::gui
