// A copy of a surface's pixels, in one format: what lethe-shot compares and lethe-vnc composes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "frontend/client.h"

namespace lethe::gui {

// 0xRRGGBB; what a format has as alpha is not kept: a surface is shown opaque.
using Pixel = uint32_t;

struct Picture {
  uint32_t width = 0, height = 0;
  std::vector<Pixel> pixels;  // width * height

  Picture() = default;
  Picture(uint32_t w, uint32_t h) : width(w), height(h), pixels(size_t{w} * h) {}
  [[nodiscard]] bool empty() const { return pixels.empty(); }
  [[nodiscard]] Pixel at(uint32_t x, uint32_t y) const { return pixels[size_t{y} * width + x]; }
  [[nodiscard]] Pixel* line(uint32_t y) { return pixels.data() + size_t{y} * width; }
  [[nodiscard]] const Pixel* line(uint32_t y) const { return pixels.data() + size_t{y} * width; }
  friend bool operator==(const Picture&, const Picture&) = default;

  // Takes a frame over: what is damaged, or all of it when the size is another. A frame without
  // pixels makes it black. Returns what changed.
  Rect update(const FrameView& frame);
};

// Where a format has its colours: the byte of a pixel, 0 to 3.
struct ByteOrder {
  uint8_t red = 0, green = 0, blue = 0;
  uint8_t alpha = 0;
  bool has_alpha = false;
};
// Of a known_format().
[[nodiscard]] ByteOrder byte_order(uint32_t format);

// One line of `width` pixels. `from` needs no alignment and may change while it is read.
void convert_line(const std::byte* from, uint32_t format, Pixel* to, uint32_t width);

}  // namespace lethe::gui
