// virtio-gpu as a driver sees it (virtio 1.2, section 5.7): 2D, blobs, contexts, cursor. One
// function a command; each returns the type of the device's response, VIRTIO_GPU_RESP_*.
#pragma once

#include <linux/virtio_gpu.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel/virtio/queue.h"
#include "kernel/virtio/transport.h"

namespace kernel {

inline constexpr uint32_t kGpuOk = VIRTIO_GPU_RESP_OK_NODATA;
inline constexpr uint64_t kGpuWindowFeatures =
    feature(VIRTIO_GPU_F_VIRGL) | feature(VIRTIO_GPU_F_EDID) | feature(VIRTIO_GPU_F_RESOURCE_BLOB) |
    feature(VIRTIO_GPU_F_CONTEXT_INIT);
inline constexpr uint16_t kGpuControlQueue = 0;
inline constexpr uint16_t kGpuCursorQueue = 1;

inline bool gpu_is_error(uint32_t response) { return response >= VIRTIO_GPU_RESP_ERR_UNSPEC; }

class GpuDriver {
 public:
  struct Options {
    uint64_t required = 0;
    uint64_t optional = kGpuWindowFeatures | feature(VIRTIO_RING_F_EVENT_IDX);
  };
  static constexpr unsigned kSlots = 16;         // commands in flight
  static constexpr size_t kRequestBytes = 4096;  // of a request, without its `more`
  static constexpr size_t kResponseBytes = 4096;

  // Finds the device, negotiates, sets up both queues, goes DRIVER_OK. False: there is none.
  bool open(const Options& options);
  // The same again, after what was a reset.
  void restart();

  VirtioDevice& device() { return device_; }
  Virtqueue& control() { return control_; }
  Virtqueue& cursor_queue() { return cursor_; }
  bool has(unsigned feature_bit) const { return (features_ & feature(feature_bit)) != 0; }
  uint8_t* shared() const { return reinterpret_cast<uint8_t*>(device_.shared_address()); }
  uint32_t scanouts() const { return device_.config<uint32_t>(8); }
  uint32_t capsets() const { return device_.config<uint32_t>(12); }

  // Sends a request (and `more`, a second readable buffer that must stay until it is answered),
  // without waiting. The slot stays taken until collect().
  unsigned send(const void* request, size_t bytes, const void* more = nullptr,
                size_t more_bytes = 0);
  bool answered(unsigned slot);
  // Waits, frees the slot, returns the response's type. `header` may be null: what came back.
  uint32_t collect(unsigned slot, virtio_gpu_ctrl_hdr* header = nullptr);
  // Both; `response` gets as much as fits.
  uint32_t command(const void* request, size_t bytes, const void* more = nullptr,
                   size_t more_bytes = 0, void* response = nullptr, size_t response_bytes = 0);

  uint32_t display_info(virtio_gpu_resp_display_info* info);
  uint32_t edid(uint32_t scanout, virtio_gpu_resp_edid* edid);
  uint32_t create_2d(uint32_t id, uint32_t format, uint32_t width, uint32_t height);
  uint32_t unref(uint32_t id);
  // `entries` must stay until this returns; `count` is what the request says, `bytes` how many of
  // them are really sent.
  uint32_t attach(uint32_t id, const virtio_gpu_mem_entry* entries, uint32_t count, size_t bytes);
  uint32_t attach(uint32_t id, const void* memory, uint32_t bytes);
  uint32_t detach(uint32_t id);
  uint32_t transfer(uint32_t id, virtio_gpu_rect r, uint64_t offset);
  uint32_t set_scanout(uint32_t scanout, uint32_t id, virtio_gpu_rect r);
  uint32_t flush(uint32_t id, virtio_gpu_rect r);

  struct Blob {
    uint32_t id;
    uint32_t context = 0;
    uint32_t memory = VIRTIO_GPU_BLOB_MEM_HOST3D;
    uint32_t flags = VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE;
    uint64_t blob_id = 0;
    uint64_t size = 0;
  };
  uint32_t create_blob(const Blob& blob, const virtio_gpu_mem_entry* entries = nullptr,
                       uint32_t count = 0);
  uint32_t map_blob(uint32_t id, uint64_t offset, uint32_t* map_info = nullptr);
  uint32_t unmap_blob(uint32_t id);
  struct ScanoutBlob {
    uint32_t scanout;
    uint32_t id;
    virtio_gpu_rect r;
    uint32_t width;
    uint32_t height;
    uint32_t format;
    uint32_t stride;
    uint32_t offset = 0;
  };
  uint32_t set_scanout_blob(const ScanoutBlob& what);

  uint32_t capset_info(uint32_t index, virtio_gpu_resp_capset_info* info);
  uint32_t capset(uint32_t id, uint32_t version, void* data, size_t bytes);
  uint32_t context_create(uint32_t context, uint32_t capset);
  uint32_t context_destroy(uint32_t context);
  uint32_t context_attach(uint32_t context, uint32_t id);
  uint32_t context_detach(uint32_t context, uint32_t id);
  // SUBMIT_3D with commands that must stay until it is answered. submit() waits.
  uint32_t submit(uint32_t context, const void* commands, size_t bytes);
  // Fenced on `ring`; not waited for.
  unsigned submit_fenced(uint32_t context, const void* commands, size_t bytes, uint8_t ring,
                         uint64_t fence);

  // The cursor queue has no responses; waits until the device has taken the command.
  void update_cursor(uint32_t scanout, uint32_t id, uint32_t x, uint32_t y, uint32_t hot_x,
                     uint32_t hot_y);
  void move_cursor(uint32_t scanout, uint32_t x, uint32_t y);

 private:
  struct Slot {
    uint8_t request[kRequestBytes];
    uint8_t response[kResponseBytes];
  };
  void negotiate();
  void take_used();
  void send_cursor(uint32_t type, const virtio_gpu_update_cursor& update);
  uint32_t resource_command(uint32_t type, uint32_t id);

  VirtioDevice device_;
  Options options_;
  uint64_t features_ = 0;
  Virtqueue control_;
  Virtqueue cursor_;
  Slot* slots_ = nullptr;
  bool taken_[kSlots] = {};
  bool answered_[kSlots] = {};
  uint8_t slot_of_[kQueueSizeMax] = {};  // by head
};

}  // namespace kernel
