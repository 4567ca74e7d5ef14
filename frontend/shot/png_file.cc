#include "frontend/shot/png_file.h"

#include <png.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

namespace lethe::gui {
namespace {

// libpng's simplified interface: no longjmp to think of.
struct Image {
  Image() { png.version = PNG_IMAGE_VERSION; }
  ~Image() { png_image_free(&png); }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  png_image png{};
};

constexpr size_t kRgb = 3;

}  // namespace

Result<> write_png(const std::string& path, const Picture& picture) {
  if (picture.empty()) return host_error("'{}': there are no pixels to write", path);
  std::vector<uint8_t> bytes(picture.pixels.size() * kRgb);
  for (size_t i = 0; i < picture.pixels.size(); ++i) {
    bytes[i * kRgb] = static_cast<uint8_t>(picture.pixels[i] >> 16);
    bytes[i * kRgb + 1] = static_cast<uint8_t>(picture.pixels[i] >> 8);
    bytes[i * kRgb + 2] = static_cast<uint8_t>(picture.pixels[i]);
  }
  Image image;
  image.png.width = picture.width;
  image.png.height = picture.height;
  image.png.format = PNG_FORMAT_RGB;
  const std::string temporary = path + "." + std::to_string(::getpid());
  if (png_image_write_to_file(&image.png, temporary.c_str(), 0, bytes.data(), 0, nullptr) == 0) {
    ::unlink(temporary.c_str());
    return host_error("cannot write '{}': {}", path, image.png.message);
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    return host_error("cannot write '{}': {}", path, errno_text(error));
  }
  return {};
}

Result<Picture> read_png(const std::string& path) {
  Image image;
  if (png_image_begin_read_from_file(&image.png, path.c_str()) == 0)
    return config_error("cannot read '{}': {}", path, image.png.message);
  if (image.png.width > kSidePixelsMax || image.png.height > kSidePixelsMax)
    return config_error("'{}' has {}x{} pixels: {} a side at most", path, image.png.width,
                        image.png.height, kSidePixelsMax);
  image.png.format = PNG_FORMAT_RGBA;  // alpha is dropped, not blended
  Picture picture(image.png.width, image.png.height);
  std::vector<uint8_t> bytes(PNG_IMAGE_SIZE(image.png));
  if (png_image_finish_read(&image.png, nullptr, bytes.data(), 0, nullptr) == 0)
    return config_error("cannot read '{}': {}", path, image.png.message);
  for (size_t i = 0; i < picture.pixels.size(); ++i)
    picture.pixels[i] =
        static_cast<Pixel>(bytes[i * 4] << 16 | bytes[i * 4 + 1] << 8 | bytes[i * 4 + 2]);
  return picture;
}

}  // namespace lethe::gui
