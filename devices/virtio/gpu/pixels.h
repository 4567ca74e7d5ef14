// What virtio-gpu takes as pixels: all formats of virtio 1.2, 5.7.6.8 have 32 bits.
#pragma once

#include <linux/virtio_gpu.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "devices/gui/gui.h"
#include "devices/gui/protocol.h"

namespace lethe {

inline constexpr uint64_t kPixelBytes = 4;

[[nodiscard]] constexpr bool valid_size(uint32_t width, uint32_t height) {
  return width > 0 && width <= gui::kSidePixelsMax && height > 0 && height <= gui::kSidePixelsMax;
}

// Whether the rectangle lies within width x height; an empty one may lie on its edge.
[[nodiscard]] constexpr bool within(const virtio_gpu_rect& r, uint32_t width, uint32_t height) {
  return uint64_t{r.x} + r.width <= width && uint64_t{r.y} + r.height <= height;
}

// Whether `lines` of `line_bytes`, `stride` apart, lie within `bytes` from `offset` on. Nothing
// overflows: a line and a count of lines have 32 bits.
[[nodiscard]] constexpr bool lines_fit(uint64_t bytes, uint64_t offset, uint32_t stride,
                                       uint64_t line_bytes, uint32_t lines) {
  if (lines == 0 || line_bytes == 0) return offset <= bytes;
  const uint64_t needed = uint64_t{stride} * (lines - 1) + line_bytes;
  return needed <= bytes && offset <= bytes - needed;
}

// What both have in common; empty if they do not meet.
[[nodiscard]] inline Rect common_part(const virtio_gpu_rect& a, const virtio_gpu_rect& b) {
  const uint64_t x = std::max(a.x, b.x);
  const uint64_t y = std::max(a.y, b.y);
  const uint64_t right = std::min(uint64_t{a.x} + a.width, uint64_t{b.x} + b.width);
  const uint64_t bottom = std::min(uint64_t{a.y} + a.height, uint64_t{b.y} + b.height);
  if (right <= x || bottom <= y) return {};
  return {static_cast<uint32_t>(x), static_cast<uint32_t>(y), static_cast<uint32_t>(right - x),
          static_cast<uint32_t>(bottom - y)};
}

}  // namespace lethe
