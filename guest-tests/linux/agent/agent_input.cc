// The agent's other half: keys, pointer and wishes of the host's user become the X server's.
#include <linux/input-event-codes.h>
#include <xcb/xtest.h>

#include <algorithm>
#include <array>

#include "guest-tests/linux/agent/agent.h"

namespace lethe::agent {
namespace {

// X's keycodes are evdev's plus 8 (xkeyboard-config's keycodes/evdev), and end at 255.
constexpr uint32_t kKeycodeOffset = 8;
constexpr uint32_t kKeycodeMax = 255;
constexpr int32_t kNotchesMax = 100;

// X's numbers of the buttons; 4 to 7 are the wheel's. 0: there is none.
uint32_t x_button(uint32_t code) {
  switch (code) {
    case BTN_LEFT:
      return 1;
    case BTN_MIDDLE:
      return 2;
    case BTN_RIGHT:
      return 3;
    case BTN_SIDE:
    case BTN_BACK:
      return 8;
    case BTN_EXTRA:
    case BTN_FORWARD:
      return 9;
    default:
      return 0;
  }
}

}  // namespace

void Agent::fake_input(uint8_t type, uint32_t detail, int32_t x, int32_t y) {
  xcb_test_fake_input(x_x.xcb(), type, static_cast<uint8_t>(detail), XCB_CURRENT_TIME, x_x.root(),
                      static_cast<int16_t>(x), static_cast<int16_t>(y), 0);
}

// An agent that was killed may have left keys down.
void Agent::release_held_keys() {
  XReply<xcb_query_keymap_reply_t> keymap(
      xcb_query_keymap_reply(x_x.xcb(), xcb_query_keymap(x_x.xcb()), nullptr));
  if (!keymap) return;
  for (uint32_t code = kKeycodeOffset; code <= kKeycodeMax; ++code)
    if ((keymap->keys[code / 8] >> (code % 8) & 1) != 0) fake_input(XCB_KEY_RELEASE, code);
}

void Agent::host_event(const window::Event& event) {
  if (event.type == window::kEventReleased) {
    ++x_counters.released;
    return;
  }
  Window* window = by_number(event.window);
  if (window == nullptr) return;  // it has gone since
  const auto a = static_cast<int32_t>(event.a);
  const auto b = static_cast<int32_t>(event.b);
  switch (event.type) {
    case window::kEventKey:
      key(*window, event.a, event.b != 0);
      break;
    case window::kEventMotion:
      motion(*window, a, b);
      break;
    case window::kEventButton:
      button(*window, event.a, event.b != 0);
      break;
    case window::kEventWheel:
      wheel(*window, a, b);
      break;
    case window::kEventFocus:
      focus(*window, event.a != 0);
      break;
    case window::kEventConfigure:
      configure(*window, {a, b, event.c, event.d});
      break;
    case window::kEventClose:
      close(*window);
      break;
    case window::kEventDone:
      if (event.a == window->serial) window->reading = false;
      break;
    default:
      break;
  }
}

void Agent::key(Window& window, uint32_t code, bool down) {
  if (code + kKeycodeOffset > kKeycodeMax) {
    ++x_counters.input_refused;
    return;
  }
  if (x_focused != window.number) focus(window, true);
  fake_input(down ? XCB_KEY_PRESS : XCB_KEY_RELEASE, code + kKeycodeOffset);
}

void Agent::motion(Window& window, int32_t x, int32_t y) {
  raise(window);
  fake_input(XCB_MOTION_NOTIFY, 0, window.geometry.x + x, window.geometry.y + y);
}

void Agent::button(Window& window, uint32_t code, bool down) {
  const uint32_t number = x_button(code);
  if (number == 0) {
    ++x_counters.input_refused;
    return;
  }
  raise(window);
  fake_input(down ? XCB_BUTTON_PRESS : XCB_BUTTON_RELEASE, number);
}

void Agent::wheel(Window& window, int32_t vertical, int32_t horizontal) {
  raise(window);
  const auto turn = [this](int32_t notches, uint32_t forward, uint32_t back) {
    notches = std::clamp(notches, -kNotchesMax, kNotchesMax);
    for (int32_t i = 0; i < std::abs(notches); ++i) {
      fake_input(XCB_BUTTON_PRESS, notches > 0 ? forward : back);
      fake_input(XCB_BUTTON_RELEASE, notches > 0 ? forward : back);
    }
  };
  turn(vertical, 4, 5);
  turn(horizontal, 7, 6);
}

// On the host windows do not cover each other as they do here: where the pointer is, is on top.
// Menus stay above what they belong to.
void Agent::raise(Window& window) {
  if (x_top == window.number) return;
  x_top = window.number;
  const uint32_t above = XCB_STACK_MODE_ABOVE;
  xcb_configure_window(x_x.xcb(), window.id, XCB_CONFIG_WINDOW_STACK_MODE, &above);
  if (window.override_redirect) return;
  for (const auto& [id, other] : x_windows)
    if (other.number != 0 && other.override_redirect)
      xcb_configure_window(x_x.xcb(), id, XCB_CONFIG_WINDOW_STACK_MODE, &above);
}

void Agent::focus(Window& window, bool focused) {
  if (window.override_redirect) return;  // menus take the keyboard themselves
  if (focused) {
    x_focused = window.number;
    raise(window);
    xcb_set_input_focus(x_x.xcb(), XCB_INPUT_FOCUS_POINTER_ROOT, window.client, XCB_CURRENT_TIME);
    if (x_x.speaks(window.client, Atom::kWmTakeFocus))
      x_x.send_protocol(window.client, Atom::kWmTakeFocus);
  } else if (x_focused == window.number) {
    x_focused = 0;
    xcb_set_input_focus(x_x.xcb(), XCB_INPUT_FOCUS_NONE, XCB_NONE, XCB_CURRENT_TIME);
  }
}

// The window stays on the guest's screen, where the pointer can reach it.
void Agent::configure(Window& window, const Geometry& wanted) {
  const bool resizes = window.resizable && wanted.width >= 1 && wanted.height >= 1 &&
                       wanted.width <= window::kSidePixelsMax &&
                       wanted.height <= window::kSidePixelsMax;
  const uint32_t width = resizes ? wanted.width : window.geometry.width;
  const uint32_t height = resizes ? wanted.height : window.geometry.height;
  const auto place = [](int32_t at, uint32_t size, uint32_t room) {
    const auto last = static_cast<int32_t>(room) - static_cast<int32_t>(size);
    return std::clamp(at, 0, std::max(last, 0));
  };
  const auto border = static_cast<int32_t>(window.border);
  const int32_t x = place(wanted.x, width, x_x.screen().width_in_pixels) - border;
  const int32_t y = place(wanted.y, height, x_x.screen().height_in_pixels) - border;
  const std::array<uint32_t, 4> values = {static_cast<uint32_t>(x), static_cast<uint32_t>(y), width,
                                          height};
  xcb_configure_window(x_x.xcb(), window.client,
                       XCB_CONFIG_WINDOW_X | XCB_CONFIG_WINDOW_Y | XCB_CONFIG_WINDOW_WIDTH |
                           XCB_CONFIG_WINDOW_HEIGHT,
                       values.data());
}

void Agent::close(Window& window) {
  if (window.override_redirect) return;
  if (x_x.speaks(window.client, Atom::kWmDeleteWindow))
    x_x.send_protocol(window.client, Atom::kWmDeleteWindow);
  else
    xcb_kill_client(x_x.xcb(), window.client);
}

}  // namespace lethe::agent
