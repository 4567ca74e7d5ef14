// SDL's scancodes (places on the keyboard, USB HID usages) to evdev codes. Any thread.
#pragma once

#include <cstdint>
#include <optional>

namespace lethe::gui {

// `scancode` is an SDL_Scancode. Nothing: the key has no evdev code here.
[[nodiscard]] std::optional<uint32_t> evdev_of_scancode(int scancode);

}  // namespace lethe::gui
