// For tests: draws ASCII as a console does.
#pragma once

#include <string>

#include "frontend/shot/glyphs.h"

namespace lethe::gui {

inline void draw_text(Picture& picture, const Font& font, uint32_t column, uint32_t row,
                      const std::string& text, Pixel front, Pixel back) {
  for (const char c : text) {
    const std::string* bitmap = font.bitmap(std::string(1, c));
    for (uint32_t y = 0; bitmap != nullptr && y < font.height(); ++y)
      for (uint32_t x = 0; x < font.width(); ++x) {
        const char byte = (*bitmap)[y * ((font.width() + 7) / 8) + x / 8];
        picture.line(row * font.height() + y)[column * font.width() + x] =
            (byte & 0x80 >> x % 8) != 0 ? front : back;
      }
    ++column;
  }
}

}  // namespace lethe::gui
