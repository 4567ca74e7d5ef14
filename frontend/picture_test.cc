#include "frontend/picture.h"

#include <gtest/gtest.h>
#include <linux/virtio_gpu.h>

#include <cstring>

namespace lethe::gui {
namespace {

struct Case {
  uint32_t format;
  uint8_t bytes[4];  // of red 0x11, green 0x22, blue 0x33, alpha 0x44, as the name says
};
constexpr Case kCases[] = {
    {VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM, {0x33, 0x22, 0x11, 0x44}},
    {VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM, {0x33, 0x22, 0x11, 0x44}},
    {VIRTIO_GPU_FORMAT_A8R8G8B8_UNORM, {0x44, 0x11, 0x22, 0x33}},
    {VIRTIO_GPU_FORMAT_X8R8G8B8_UNORM, {0x44, 0x11, 0x22, 0x33}},
    {VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM, {0x11, 0x22, 0x33, 0x44}},
    {VIRTIO_GPU_FORMAT_R8G8B8X8_UNORM, {0x11, 0x22, 0x33, 0x44}},
    {VIRTIO_GPU_FORMAT_A8B8G8R8_UNORM, {0x44, 0x33, 0x22, 0x11}},
    {VIRTIO_GPU_FORMAT_X8B8G8R8_UNORM, {0x44, 0x33, 0x22, 0x11}},
};

TEST(Picture, converts_all_eight_formats) {
  for (const Case& one : kCases) {
    Pixel pixel = 0;
    convert_line(reinterpret_cast<const std::byte*>(one.bytes), one.format, &pixel, 1);
    EXPECT_EQ(pixel, 0x112233U) << one.format;
  }
}

TEST(Picture, takes_only_the_damage_over) {
  std::vector<uint32_t> memory(5 * 4, 0x0000FF);
  FrameView frame{.pixels = reinterpret_cast<const std::byte*>(memory.data()),
                  .format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM,
                  .stride = 20,
                  .width = 4,
                  .height = 4,
                  .damage = {1, 1, 1, 1}};
  Picture picture;
  EXPECT_EQ(picture.update(frame), (Rect{0, 0, 4, 4})) << "a new size is damaged whole";
  std::fill(memory.begin(), memory.end(), 0x00FF00);
  frame.damage = {1, 2, 2, 1};
  EXPECT_EQ(picture.update(frame), frame.damage);
  for (uint32_t y = 0; y < 4; ++y)
    for (uint32_t x = 0; x < 4; ++x)
      EXPECT_EQ(picture.at(x, y), y == 2 && (x == 1 || x == 2) ? 0x00FF00U : 0x0000FFU);
}

TEST(Picture, is_black_when_nothing_is_shown) {
  Picture picture(2, 2);
  picture.pixels.assign(4, 0xFFFFFF);
  EXPECT_EQ(picture.update({}), (Rect{0, 0, 2, 2}));
  EXPECT_EQ(picture, Picture(2, 2));
}

}  // namespace
}  // namespace lethe::gui
