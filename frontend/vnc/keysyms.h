// X keysyms, which VNC clients send, to keys of a US keyboard. Any thread.
#pragma once

#include <cstdint>
#include <optional>

#include "frontend/keys.h"

namespace lethe::gui {

struct KeysymStroke {
  KeyStroke stroke;
  bool character = false;  // `stroke.shift` matters; else the key is one whatever Shift is
};

[[nodiscard]] std::optional<KeysymStroke> key_of_keysym(uint32_t keysym);

}  // namespace lethe::gui
