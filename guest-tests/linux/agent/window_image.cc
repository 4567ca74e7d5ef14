#include "guest-tests/linux/agent/window_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/unique_fd.h"

namespace lethe::agent {
namespace {

constexpr uint64_t kScratchStep = 1u << 20;

}  // namespace

XSharedMemory XSharedMemory::attach(const XConnection& x, int fd) {
  XSharedMemory memory;
  const int ours = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (ours < 0) return memory;
  const xcb_shm_seg_t segment = xcb_generate_id(x.xcb());
  // xcb closes the descriptor that it sends.
  XReply<xcb_generic_error_t> refused(
      xcb_request_check(x.xcb(), xcb_shm_attach_fd_checked(x.xcb(), segment, ours, 0)));
  if (refused) return memory;
  memory.x_x = &x;
  memory.x_segment = segment;
  return memory;
}

XSharedMemory& XSharedMemory::operator=(XSharedMemory&& other) noexcept {
  std::swap(x_x, other.x_x);
  std::swap(x_segment, other.x_segment);
  return *this;
}

XSharedMemory::~XSharedMemory() {
  if (x_segment != 0) xcb_shm_detach(x_x->xcb(), x_segment);
}

Scratch::~Scratch() {
  if (x_data != nullptr) munmap(x_data, x_bytes);
}

uint8_t* Scratch::reserve(uint64_t bytes) {
  if (bytes <= x_bytes) return x_data;
  bytes = (bytes + kScratchStep - 1) / kScratchStep * kScratchStep;
  const UniqueFd fd(memfd_create("lethe-agent", MFD_CLOEXEC));
  if (!fd.valid() || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return nullptr;
  XSharedMemory memory = XSharedMemory::attach(x_x, fd.get());
  if (!memory.valid()) return nullptr;
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return nullptr;
  if (x_data != nullptr) munmap(x_data, x_bytes);
  x_memory = std::move(memory);
  x_data = static_cast<uint8_t*>(data);
  x_bytes = bytes;
  return x_data;
}

Result<std::unique_ptr<WindowImage>> WindowImage::create(const XConnection& x, Host& host,
                                                         uint8_t depth, uint32_t width,
                                                         uint32_t height) {
  std::unique_ptr<WindowImage> image(new WindowImage(x));
  image->x_width = width;
  image->x_height = height;
  LETHE_TRY_ASSIGN(image->x_buffer, host.make_buffer(uint64_t{width} * height * 4));
  if (!x.shared_pixmaps() || image->x_buffer->fd() < 0) return image;
  image->x_memory = XSharedMemory::attach(x, image->x_buffer->fd());
  if (!image->x_memory.valid()) return image;
  const xcb_pixmap_t pixmap = xcb_generate_id(x.xcb());
  XReply<xcb_generic_error_t> refused(xcb_request_check(
      x.xcb(), xcb_shm_create_pixmap_checked(
                   x.xcb(), pixmap, x.root(), static_cast<uint16_t>(width),
                   static_cast<uint16_t>(height), depth, image->x_memory.id(), 0)));
  if (refused) return image;
  image->x_pixmap = pixmap;
  image->x_gc = xcb_generate_id(x.xcb());
  // With its children; and no event for each copy that all went well.
  const std::array<uint32_t, 2> values = {XCB_SUBWINDOW_MODE_INCLUDE_INFERIORS, 0};
  xcb_create_gc(x.xcb(), image->x_gc, pixmap, XCB_GC_SUBWINDOW_MODE | XCB_GC_GRAPHICS_EXPOSURES,
                values.data());
  return image;
}

WindowImage::~WindowImage() {
  if (x_gc != 0) xcb_free_gc(x_x.xcb(), x_gc);
  if (x_pixmap != 0) xcb_free_pixmap(x_x.xcb(), x_pixmap);
}

void WindowImage::copy(xcb_window_t window, const xcb_rectangle_t& part, Scratch& scratch) {
  if (!direct()) {
    copy_by_scratch(window, part, scratch);
    return;
  }
  xcb_copy_area(x_x.xcb(), window, x_pixmap, x_gc, part.x, part.y, part.x, part.y, part.width,
                part.height);
}

void WindowImage::copy_by_scratch(xcb_window_t window, const xcb_rectangle_t& part,
                                  Scratch& scratch) {
  const uint8_t* from = scratch.reserve(uint64_t{part.width} * part.height * 4);
  if (from == nullptr) return;
  XReply<xcb_shm_get_image_reply_t> reply(xcb_shm_get_image_reply(
      x_x.xcb(),
      xcb_shm_get_image(x_x.xcb(), window, part.x, part.y, part.width, part.height, ~0u,
                        XCB_IMAGE_FORMAT_Z_PIXMAP, scratch.segment(), 0),
      nullptr));
  if (!reply) return;  // it has become smaller, or is gone: an event will tell
  uint8_t* to = x_buffer->data() + uint64_t{stride()} * static_cast<uint16_t>(part.y) +
                uint64_t{4} * static_cast<uint16_t>(part.x);
  // SAFETY: the part lies within the image, and the image within its buffer.
  for (uint32_t line = 0; line < part.height; ++line)
    std::memcpy(to + uint64_t{line} * stride(), from + uint64_t{line} * part.width * 4,
                uint64_t{part.width} * 4);
}

}  // namespace lethe::agent
