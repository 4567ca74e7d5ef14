// Keys by evdev code (linux/input-event-codes.h): the names of all, and how a US keyboard types a
// character. Any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace lethe::gui {

struct KeyStroke {
  uint32_t code = 0;   // KEY_*
  bool shift = false;  // with KEY_LEFTSHIFT
};

// The key of a US keyboard that types the character (printable ASCII, '\n', '\t', '\b', ESC).
[[nodiscard]] std::optional<KeyStroke> us_key(char32_t character);

// "KEY_LEFTCTRL", or without "KEY_"; upper case.
[[nodiscard]] std::optional<uint32_t> key_by_name(std::string_view name);

}  // namespace lethe::gui
