// Screens as the control API sees them: sizes, and pictures of what they show.
#include "vmm/api/screenshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/virtio_gpu.h>
#include <png.h>

#include <array>
#include <vector>

#include "devices/virtio/gpu/quiet_listener.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Asked final : QuietListener {
  void configure(SurfaceId id, int32_t, int32_t, uint32_t width, uint32_t height) override {
    surface = id;
    size = {width, height};
  }
  SurfaceId surface = 0;
  std::array<uint32_t, 2> size{};
};

// A GUI with two screens of 3x2; the second one is added first.
class Screenshot : public testing::Test {
 protected:
  static constexpr uint32_t kWidth = 3, kHeight = 2, kStride = 16, kOffset = 32;

  Screenshot() {
    x_gui.run_and_wait([this] {
      for (const uint32_t output : {1u, 0u}) {
        const SurfaceState state{
            .flags = gui::kSurfaceVisible, .width = kWidth, .height = kHeight, .output = output};
        x_surfaces[output] = *x_gui.add_surface(state, x_listener);
      }
      SurfaceState window{.kind = gui::SurfaceKind::kWindow, .width = 9, .height = 9};
      (void)x_gui.add_surface(window, x_listener);
    });
  }
  ~Screenshot() override {
    x_gui.run_and_wait([this] { x_gui.forget_listener(x_listener); });
  }

  // Shows bytes that count up from `kOffset` on.
  void show(uint32_t output, uint32_t format) {
    x_gui.run_and_wait([&] {
      x_buffer = *x_gui.create_buffer(4096, x_listener);
      uint8_t* const data = x_gui.buffer(x_buffer)->data();
      for (uint32_t i = 0; i < kStride * kHeight; ++i)
        data[kOffset + i] = static_cast<uint8_t>(1 + i);
      x_gui.present(x_surfaces[output],
                    {.buffer = x_buffer,
                     .offset = kOffset,
                     .stride = kStride,
                     .format = format,
                     .width = kWidth,
                     .height = kHeight},
                    {0, 0, kWidth, kHeight});
    });
  }
  // The picture's bytes as red, green, blue, alpha.
  static std::vector<uint8_t> read(const std::string& png) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    EXPECT_TRUE(png_image_begin_read_from_memory(&image, png.data(), png.size())) << image.message;
    EXPECT_EQ(image.width, kWidth);
    EXPECT_EQ(image.height, kHeight);
    image.format = PNG_FORMAT_RGBA;
    std::vector<uint8_t> bytes(PNG_IMAGE_SIZE(image));
    EXPECT_TRUE(png_image_finish_read(&image, nullptr, bytes.data(), 0, nullptr));
    return bytes;
  }

  Asked x_listener;
  Gui x_gui{GuiOptions{.vm_name = "vm"}};
  std::array<SurfaceId, 2> x_surfaces{};
  BufferId x_buffer{};
};

TEST_F(Screenshot, has_the_colours_of_every_format) {
  const struct {
    uint32_t format;
    std::array<uint8_t, 3> places;  // of red, green and blue
  } kFormats[] = {
      {VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM, {2, 1, 0}}, {VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM, {2, 1, 0}},
      {VIRTIO_GPU_FORMAT_A8R8G8B8_UNORM, {1, 2, 3}}, {VIRTIO_GPU_FORMAT_X8R8G8B8_UNORM, {1, 2, 3}},
      {VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM, {0, 1, 2}}, {VIRTIO_GPU_FORMAT_R8G8B8X8_UNORM, {0, 1, 2}},
      {VIRTIO_GPU_FORMAT_A8B8G8R8_UNORM, {3, 2, 1}}, {VIRTIO_GPU_FORMAT_X8B8G8R8_UNORM, {3, 2, 1}}};
  for (const auto& [format, places] : kFormats) {
    SCOPED_TRACE(format);
    show(0, format);
    const auto png = make_png(x_gui.screens(true)[0]);
    ASSERT_TRUE(png) << png.error().text;
    std::vector<uint8_t> expected;
    for (uint32_t y = 0; y < kHeight; ++y)
      for (uint32_t x = 0; x < kWidth; ++x) {
        for (const uint8_t place : places)
          expected.push_back(static_cast<uint8_t>(1 + y * kStride + x * 4 + place));
        expected.push_back(0xFF);
      }
    EXPECT_EQ(read(*png), expected);
  }
}

TEST_F(Screenshot, screens_are_told_in_their_order_and_windows_are_not) {
  show(1, VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM);
  const auto screens = x_gui.screens(true);
  ASSERT_EQ(screens.size(), 2u);
  EXPECT_EQ(screens[0].output, 0u);
  EXPECT_FALSE(screens[0].pixels.valid());
  EXPECT_TRUE(screens[1].pixels.valid());
  EXPECT_FALSE(x_gui.screens()[1].pixels.valid());
}

TEST_F(Screenshot, a_buffer_that_is_revoked_meanwhile_is_an_error) {
  show(0, VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM);
  const auto screens = x_gui.screens(true);
  x_gui.run_and_wait([this] { x_gui.release_buffer(x_buffer); });
  x_gui.run_and_wait([] {});  // the pass that frees it was posted
  const auto png = make_png(screens[0]);
  ASSERT_FALSE(png);
  EXPECT_THAT(png.error().text, HasSubstr("went away"));
}

TEST_F(Screenshot, a_resize_asks_the_screens_creator) {
  EXPECT_TRUE(x_gui.resize_screen(1, 1024, 768));
  EXPECT_EQ(x_listener.surface, x_surfaces[1]);
  EXPECT_THAT(x_listener.size, ElementsAre(1024, 768));
  EXPECT_FALSE(x_gui.resize_screen(2, 640, 480));
  EXPECT_THAT(x_listener.size, ElementsAre(1024, 768));
}

}  // namespace
}  // namespace lethe
