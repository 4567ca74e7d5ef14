#include "frontend/picture.h"

#include <linux/virtio_gpu.h>

#include <algorithm>
#include <cstring>

namespace lethe::gui {

// virtio 1.2, 5.7.6.8: names tell the bytes in memory, the lowest address first.
ByteOrder byte_order(uint32_t format) {
  switch (format) {
    case VIRTIO_GPU_FORMAT_A8R8G8B8_UNORM:
      return {.red = 1, .green = 2, .blue = 3, .alpha = 0, .has_alpha = true};
    case VIRTIO_GPU_FORMAT_X8R8G8B8_UNORM:
      return {.red = 1, .green = 2, .blue = 3, .alpha = 0, .has_alpha = false};
    case VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM:
      return {.red = 0, .green = 1, .blue = 2, .alpha = 3, .has_alpha = true};
    case VIRTIO_GPU_FORMAT_R8G8B8X8_UNORM:
      return {.red = 0, .green = 1, .blue = 2, .alpha = 3, .has_alpha = false};
    case VIRTIO_GPU_FORMAT_A8B8G8R8_UNORM:
      return {.red = 3, .green = 2, .blue = 1, .alpha = 0, .has_alpha = true};
    case VIRTIO_GPU_FORMAT_X8B8G8R8_UNORM:
      return {.red = 3, .green = 2, .blue = 1, .alpha = 0, .has_alpha = false};
    case VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM:
      return {.red = 2, .green = 1, .blue = 0, .alpha = 3, .has_alpha = true};
    default:
      return {.red = 2, .green = 1, .blue = 0, .alpha = 3, .has_alpha = false};
  }
}

void convert_line(const std::byte* from, uint32_t format, Pixel* to, uint32_t width) {
  const ByteOrder order = byte_order(format);
  if (order.blue == 0 && order.red == 2) {  // the common one is a copy
    std::memcpy(to, from, size_t{width} * sizeof(Pixel));
    for (uint32_t x = 0; x < width; ++x) to[x] &= 0xFFFFFF;
    return;
  }
  for (uint32_t x = 0; x < width; ++x, from += kPixelBytes)
    to[x] = static_cast<uint32_t>(from[order.red]) << 16 |
            static_cast<uint32_t>(from[order.green]) << 8 | static_cast<uint32_t>(from[order.blue]);
}

Rect Picture::update(const FrameView& frame) {
  if (frame.pixels == nullptr) {
    std::fill(pixels.begin(), pixels.end(), 0);
    return {0, 0, width, height};
  }
  Rect rect = frame.damage;
  if (width != frame.width || height != frame.height) {
    *this = Picture(frame.width, frame.height);
    rect = {0, 0, width, height};
  }
  for (uint32_t y = rect.y; y < rect.y + rect.height; ++y)
    convert_line(frame.pixels + size_t{y} * frame.stride + size_t{rect.x} * kPixelBytes,
                 frame.format, line(y) + rect.x, rect.width);
  return rect;
}

}  // namespace lethe::gui
