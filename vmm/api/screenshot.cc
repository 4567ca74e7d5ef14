#include "vmm/api/screenshot.h"

#include <linux/virtio_gpu.h>
#include <png.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace lethe {
namespace {

constexpr size_t kPixelBytes = 4;

// virtio 1.2, 5.7.6.8, and libpng: both name the bytes in memory, the lowest address first. An X is
// taken as an A, and is made opaque.
uint32_t png_format(uint32_t format) {
  switch (format) {
    case VIRTIO_GPU_FORMAT_A8R8G8B8_UNORM:
    case VIRTIO_GPU_FORMAT_X8R8G8B8_UNORM:
      return PNG_FORMAT_ARGB;
    case VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM:
    case VIRTIO_GPU_FORMAT_R8G8B8X8_UNORM:
      return PNG_FORMAT_RGBA;
    case VIRTIO_GPU_FORMAT_A8B8G8R8_UNORM:
    case VIRTIO_GPU_FORMAT_X8B8G8R8_UNORM:
      return PNG_FORMAT_ABGR;
    default:
      return PNG_FORMAT_BGRA;
  }
}

Result<std::vector<uint8_t>> copy_pixels(const ScreenView& screen) {
  const SurfaceContent& content = screen.content;
  const size_t line_bytes = content.width * kPixelBytes;
  std::vector<uint8_t> pixels(line_bytes * content.height);
  for (uint32_t y = 0; y < content.height; ++y) {
    const auto from = static_cast<off_t>(content.offset + uint64_t{y} * content.stride);
    const ssize_t got =
        ::pread(screen.pixels.get(), pixels.data() + y * line_bytes, line_bytes, from);
    if (got != static_cast<ssize_t>(line_bytes))
      return host_error("the screen's pixels went away meanwhile");
  }
  return pixels;
}

// What libpng writes, kept in memory.
class MemoryFile {
 public:
  MemoryFile() : x_file(::open_memstream(&x_data, &x_size)) {}
  ~MemoryFile() {
    if (x_file != nullptr) (void)std::fclose(x_file);
    std::free(x_data);
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  [[nodiscard]] FILE* file() const { return x_file; }
  // Ends the writing.
  [[nodiscard]] bool finish() { return std::fclose(std::exchange(x_file, nullptr)) == 0; }
  [[nodiscard]] std::string text() const { return {x_data, x_size}; }

 private:
  char* x_data = nullptr;
  size_t x_size = 0;
  FILE* x_file;
};

}  // namespace

Result<std::string> make_png(const ScreenView& screen) {
  LETHE_TRY_ASSIGN(std::vector<uint8_t> pixels, copy_pixels(screen));
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = screen.content.width;
  image.height = screen.content.height;
  image.format = png_format(screen.content.format);
  image.flags = PNG_IMAGE_FLAG_FAST;
  const size_t alpha = (image.format & PNG_FORMAT_FLAG_AFIRST) != 0 ? 0 : kPixelBytes - 1;
  for (size_t at = alpha; at < pixels.size(); at += kPixelBytes) pixels[at] = 0xFF;
  MemoryFile out;
  if (out.file() == nullptr) return host_error("no memory for a picture");
  const bool written =
      png_image_write_to_stdio(&image, out.file(), 0, pixels.data(), 0, nullptr) != 0;
  png_image_free(&image);
  if (!out.finish() || !written) return host_error("no picture: {}", image.message);
  return out.text();
}

}  // namespace lethe
