// A window's pixels, in a buffer that the host shows: brought up to date by one copy, which the X
// server itself makes into the buffer if it can map it (a pixmap in shared memory), else by
// ShmGetImage and a copy of ours.
//
// Threading: one thread.
#pragma once

#include <xcb/shm.h>
#include <xcb/xcb.h>

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "guest-tests/linux/agent/host.h"
#include "guest-tests/linux/agent/x_connection.h"

namespace lethe::agent {

// Memory that an X server and we share by a descriptor, attached to it.
class XSharedMemory {
 public:
  // Takes a duplicate of `fd`. Invalid if the server will not have it.
  static XSharedMemory attach(const XConnection& x, int fd);
  XSharedMemory() = default;
  XSharedMemory(XSharedMemory&& other) noexcept { *this = std::move(other); }
  XSharedMemory& operator=(XSharedMemory&& other) noexcept;
  ~XSharedMemory();
  [[nodiscard]] bool valid() const { return x_segment != 0; }
  [[nodiscard]] xcb_shm_seg_t id() const { return x_segment; }

 private:
  const XConnection* x_x = nullptr;
  xcb_shm_seg_t x_segment = 0;
};

// Scratch memory for ShmGetImage, of one connection; grows as needed.
class Scratch {
 public:
  explicit Scratch(const XConnection& x) : x_x(x) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  // Null if the host or the server refuses.
  uint8_t* reserve(uint64_t bytes);
  [[nodiscard]] xcb_shm_seg_t segment() const { return x_memory.id(); }

 private:
  const XConnection& x_x;
  XSharedMemory x_memory;
  uint8_t* x_data = nullptr;
  uint64_t x_bytes = 0;
};

class WindowImage {
 public:
  // Of `width` x `height` pixels of a window of `depth` 24 or 32.
  [[nodiscard]] static Result<std::unique_ptr<WindowImage>> create(const XConnection& x, Host& host,
                                                                   uint8_t depth, uint32_t width,
                                                                   uint32_t height);
  ~WindowImage();
  WindowImage(const WindowImage&) = delete;
  WindowImage& operator=(const WindowImage&) = delete;

  [[nodiscard]] const Buffer& buffer() const { return *x_buffer; }
  [[nodiscard]] uint32_t width() const { return x_width; }
  [[nodiscard]] uint32_t height() const { return x_height; }
  [[nodiscard]] uint32_t stride() const { return x_width * 4; }
  // The server draws into the buffer: what copy() asked for is there after XConnection::sync().
  [[nodiscard]] bool direct() const { return x_pixmap != 0; }

  // Copies the part of the window, which lies within the image. What the window has lost since
  // stays as it was.
  void copy(xcb_window_t window, const xcb_rectangle_t& part, Scratch& scratch);

 private:
  explicit WindowImage(const XConnection& x) : x_x(x) {}
  void copy_by_scratch(xcb_window_t window, const xcb_rectangle_t& part, Scratch& scratch);

  const XConnection& x_x;
  uint32_t x_width = 0;
  uint32_t x_height = 0;
  std::unique_ptr<Buffer> x_buffer;
  XSharedMemory x_memory;
  xcb_pixmap_t x_pixmap = 0;
  xcb_gcontext_t x_gc = 0;
};

}  // namespace lethe::agent
