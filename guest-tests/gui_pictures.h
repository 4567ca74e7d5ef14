// For tests: pictures of screens, as files and as what should be seen.
#pragma once

#include <gtest/gtest.h>
#include <png.h>
#include <stdio.h>  // before jpeglib.h, which needs it

#include <jpeglib.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guest-tests/baremetal/guests/picture.h"

namespace lethe_test {

struct Image {
  uint32_t width = 0;
  uint32_t height = 0;
  std::vector<uint32_t> pixels;  // 0xRRGGBB
  [[nodiscard]] uint32_t at(uint32_t x, uint32_t y) const { return pixels[size_t{y} * width + x]; }
};

inline Image window_image(const char* name, uint32_t colour) {
  Image image{picture::kWindowWidth, picture::kWindowHeight, {}};
  image.pixels.resize(size_t{image.width} * image.height);
  picture::window({image.pixels.data(), image.width, image.height}, name, colour);
  return image;
}
inline Image screen_image() {
  Image image{picture::kScreenWidth, picture::kScreenHeight, {}};
  image.pixels.resize(size_t{image.width} * image.height);
  picture::screen({image.pixels.data(), image.width, image.height});
  return image;
}

// A PNG file's bytes; empty if it is none.
inline Image decode_png(const std::string& bytes) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_memory(&png, bytes.data(), bytes.size()) == 0) return {};
  png.format = PNG_FORMAT_BGRA;
  Image image{png.width, png.height, {}};
  image.pixels.resize(size_t{png.width} * png.height);
  const png_color black{};
  if (png_image_finish_read(&png, &black, image.pixels.data(), 0, nullptr) == 0) return {};
  for (uint32_t& pixel : image.pixels) pixel &= 0xffffff;
  return image;
}

// That picture as a PNG file.
[[nodiscard]] inline bool write_png(const std::string& path, const Image& image) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = image.width;
  png.height = image.height;
  png.format = PNG_FORMAT_BGR;
  std::vector<uint8_t> bytes;
  for (const uint32_t pixel : image.pixels)
    for (const int shift : {0, 8, 16}) bytes.push_back(static_cast<uint8_t>(pixel >> shift));
  return png_image_write_to_file(&png, path.c_str(), 0, bytes.data(), 0, nullptr) != 0;
}

// A complete JPEG file's bytes. (libjpeg ends the process for a file that is none.)
inline Image decode_jpeg(const std::string& bytes) {
  if (bytes.size() < 4 || bytes.compare(0, 2, "\xff\xd8") != 0) return {};
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&jpeg);
  // SAFETY: libjpeg wants bytes that are unsigned.
  jpeg_mem_src(&jpeg, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  jpeg_read_header(&jpeg, TRUE);
  jpeg.out_color_space = JCS_RGB;
  jpeg_start_decompress(&jpeg);
  Image image{jpeg.output_width, jpeg.output_height, {}};
  std::vector<uint8_t> line(size_t{image.width} * 3);
  while (jpeg.output_scanline < jpeg.output_height) {
    uint8_t* row = line.data();
    jpeg_read_scanlines(&jpeg, &row, 1);
    for (size_t x = 0; x < image.width; ++x)
      image.pixels.push_back(uint32_t{line[3 * x]} << 16 | uint32_t{line[3 * x + 1]} << 8 |
                             line[3 * x + 2]);
  }
  jpeg_finish_decompress(&jpeg);
  jpeg_destroy_decompress(&jpeg);
  return image;
}

// The framebuffer that Xvfb -fbdir keeps: an XWD file of 32 bits a pixel (X11/XWDFile.h).
inline Image decode_xwd(const std::string& bytes) {
  const auto word = [&](size_t index) {
    uint32_t value = 0;
    if (bytes.size() >= 4 * index + 4) std::memcpy(&value, bytes.data() + 4 * index, 4);
    return __builtin_bswap32(value);
  };
  const uint32_t header = word(0);
  const uint32_t width = word(4);
  const uint32_t height = word(5);
  const uint32_t bits = word(11);
  const uint32_t stride = word(12);
  const uint64_t start = header + uint64_t{word(19)} * 12;  // behind the colours
  if (bits != 32 || width == 0 || bytes.size() < start + uint64_t{stride} * height) return {};
  Image image{width, height, {}};
  for (uint32_t y = 0; y < height; ++y) {
    for (uint32_t x = 0; x < width; ++x) {
      uint32_t pixel = 0;
      std::memcpy(&pixel, bytes.data() + start + uint64_t{y} * stride + x * 4, 4);
      image.pixels.push_back(pixel & 0xffffff);
    }
  }
  return image;
}

// Whether all colours of two pixels are within `tolerance`.
inline bool near(uint32_t a, uint32_t b, int tolerance) {
  for (int shift = 0; shift <= 16; shift += 8)
    if (std::abs(static_cast<int>(a >> shift & 0xff) - static_cast<int>(b >> shift & 0xff)) >
        tolerance)
      return false;
  return true;
}

struct Place {
  uint32_t x = 0;
  uint32_t y = 0;
};
// Where `part` is in `whole`, all of it. With a tolerance, for lossy pictures, it is where the
// fewest pixels are off, but one in 50 at most. Nothing: it is nowhere.
inline std::optional<Place> find_in(const Image& whole, const Image& part, int tolerance = 0) {
  if (part.width > whole.width || part.height > whole.height) return std::nullopt;
  std::optional<Place> best;
  size_t bad_max = tolerance == 0 ? 0 : part.pixels.size() / 50;
  for (uint32_t y = 0; y + part.height <= whole.height; ++y) {
    for (uint32_t x = 0; x + part.width <= whole.width; ++x) {
      size_t bad = 0;
      for (uint32_t v = 0; v < part.height && bad <= bad_max; ++v)
        for (uint32_t u = 0; u < part.width && bad <= bad_max; ++u)
          bad += near(whole.at(x + u, y + v), part.at(u, v), tolerance) ? 0 : 1;
      if (bad > bad_max) continue;
      best = Place{x, y};
      if (bad == 0) return best;
      bad_max = bad - 1;
    }
  }
  return best;
}

}  // namespace lethe_test
