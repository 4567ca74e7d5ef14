// A program's windows on the host, by the window commands (devices/virtio/gpu/window_protocol.h):
// one context, one event ring.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "devices/virtio/gpu/window_protocol.h"
#include "kernel/virtio/gpu.h"

namespace kernel {

namespace window = lethe::window;

// A HOST3D blob, mapped: pixels that the host shows without a copy.
struct WindowBuffer {
  uint32_t id = 0;
  uint64_t offset = 0;  // in the shared memory region
  uint32_t bytes = 0;
  volatile uint32_t* pixels = nullptr;
};

class Windows {
 public:
  // Context 1 with an event ring of one page, blob `ring_id`, mapped at the region's start.
  // Fails a CHECK if the device refuses.
  void open(GpuDriver& gpu, uint32_t ring_id = 1);

  GpuDriver& gpu() { return *gpu_; }
  uint32_t context() const { return kContext; }

  // Makes a buffer at `offset` of the shared memory region, whole pages.
  WindowBuffer make_buffer(uint32_t id, uint64_t offset, uint32_t bytes);
  // Unmaps and unreferences it: kEventReleased will follow.
  void drop_buffer(const WindowBuffer& buffer);

  // Commands; each is put behind the others and sent by commit().
  void create(uint32_t id, int32_t x, int32_t y, uint32_t width, uint32_t height, uint32_t flags,
              uint32_t parent = 0);
  void title(uint32_t id, const char* text);
  void geometry(uint32_t id, int32_t x, int32_t y, uint32_t width, uint32_t height, uint32_t flags);
  void attach(uint32_t id, const WindowBuffer& buffer, uint32_t width, uint32_t height);
  void damage(uint32_t id, uint32_t x, uint32_t y, uint32_t width, uint32_t height,
              uint32_t serial);
  void destroy(uint32_t id);
  void raw(const void* command, size_t bytes);
  // The device's response.
  uint32_t commit();

  // The next event that the ring has; false: none. Lost events fail a CHECK.
  bool next(window::Event& event);
  // Waits for an event of this type (others are dropped); fails a CHECK when none comes soon.
  window::Event wait_for(uint32_t type);
  // The poll fence: starts a poll; whether it has completed.
  void start_poll();
  bool polling() const { return polling_; }
  bool poll_done();

  static constexpr uint32_t kContext = 1;

 private:
  void place(uint32_t command, const window::WindowCreate& state);
  uint32_t capacity() const;

  GpuDriver* gpu_ = nullptr;
  WindowBuffer ring_;
  uint32_t tail_ = 0;
  uint64_t fence_ = 0;
  unsigned poll_slot_ = 0;
  bool polling_ = false;
  window::Poll poll_ = {};
  size_t used_ = 0;
  uint8_t* batch_ = nullptr;  // a page
};

}  // namespace kernel
