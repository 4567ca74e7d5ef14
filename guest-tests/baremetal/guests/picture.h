// What the GUI guests draw. Guests draw with it into the buffers that the host shows, and
// ../../gui_test.cc, on the host, into memory of its own, to compare: so there is one source of
// what should be seen. B8G8R8X8, a pixel a uint32_t 0x00RRGGBB.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace picture {

struct Canvas {
  volatile uint32_t* pixels;
  uint32_t width;
  uint32_t height;
};

// One string instruction a line: each emulated one is dear.
inline void fill(const Canvas& c, uint32_t x, uint32_t y, uint32_t width, uint32_t height,
                 uint32_t colour) {
  for (uint32_t line = y; line < y + height && line < c.height; ++line) {
    auto* to = const_cast<uint32_t*>(c.pixels + size_t{line} * c.width + x);
    size_t count = width;
    // SAFETY: stores `count` pixels from `to` on, which callers keep within the canvas.
    asm volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(colour) : "memory");
  }
}

// 5 by 7 pixels, a byte a line, bit 4 is the leftmost.
struct Glyph {
  char letter;
  uint8_t lines[7];
};
inline constexpr Glyph kGlyphs[] = {
    {'A', {0x0e, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11}},
    {'B', {0x1e, 0x11, 0x11, 0x1e, 0x11, 0x11, 0x1e}},
    {'C', {0x0f, 0x10, 0x10, 0x10, 0x10, 0x10, 0x0f}},
    {'E', {0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x1f}},
    {'H', {0x11, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11}},
    {'I', {0x0e, 0x04, 0x04, 0x04, 0x04, 0x04, 0x0e}},
    {'K', {0x11, 0x12, 0x14, 0x18, 0x14, 0x12, 0x11}},
    {'L', {0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x1f}},
    {'M', {0x11, 0x1b, 0x15, 0x15, 0x11, 0x11, 0x11}},
    {'N', {0x11, 0x19, 0x19, 0x15, 0x13, 0x13, 0x11}},
    {'O', {0x0e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}},
    {'R', {0x1e, 0x11, 0x11, 0x1e, 0x14, 0x12, 0x11}},
    {'S', {0x0f, 0x10, 0x10, 0x0e, 0x01, 0x01, 0x1e}},
    {'T', {0x1f, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04}},
    {'U', {0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}},
    {'V', {0x11, 0x11, 0x11, 0x11, 0x11, 0x0a, 0x04}},
};

// Letters without a glyph are left blank. `scale`: pixels a dot. A letter is 6 dots wide.
inline void text(const Canvas& c, uint32_t x, uint32_t y, const char* letters, uint32_t colour,
                 uint32_t scale) {
  for (; *letters != 0; ++letters, x += 6 * scale) {
    for (const Glyph& g : kGlyphs) {
      if (g.letter != *letters) continue;
      for (uint32_t line = 0; line < 7; ++line) {
        for (uint32_t dot = 0; dot < 5; ++dot) {
          if (((g.lines[line] >> (4 - dot)) & 1) == 0) continue;
          fill(c, x + dot * scale, y + line * scale, scale, scale, colour);
        }
      }
    }
  }
}

// --- the demo ---

inline constexpr uint32_t kColours[] = {0x1f4e79, 0x7a3b1d, 0x2d6a3e, 0x5b2a6e};
inline constexpr uint32_t kColoursCount = 4;
inline constexpr uint32_t kInk = 0xf2efe6;
inline constexpr uint32_t kWindowWidth = 160;
inline constexpr uint32_t kWindowHeight = 120;

// A window: a frame, a name, and a field whose colour a click changes.
inline void window(const Canvas& c, const char* name, uint32_t colour) {
  fill(c, 0, 0, c.width, c.height, kInk);
  fill(c, 3, 3, c.width - 6, c.height - 6, kColours[colour % kColoursCount]);
  text(c, 12, 12, name, kInk, 2);
}

inline constexpr uint32_t kScreenWidth = 320;
inline constexpr uint32_t kScreenHeight = 200;

// The screen: a title, and bars of red, green, blue and white, which tell if channels are swapped.
inline void screen(const Canvas& c) {
  fill(c, 0, 0, c.width, c.height, 0x101820);
  text(c, 16, 16, "LETHE", kInk, 6);
  const uint32_t bars[] = {0xff0000, 0x00ff00, 0x0000ff, 0xffffff};
  for (uint32_t i = 0; i < 4; ++i) fill(c, 16 + i * 48, 100, 40, 60, bars[i]);
}

}  // namespace picture
