#include "kernel/virtio/gpu.h"

#include <linux/virtio_ids.h>

#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

// A request whose header says what it is; the rest is zero.
template <typename T>
T request_of(uint32_t type) {
  T r;
  memset(&r, 0, sizeof(r));
  r.hdr.type = type;
  return r;
}

}  // namespace

void GpuDriver::negotiate() { features_ = device_.start(options_.required, options_.optional); }

bool GpuDriver::open(const Options& options) {
  if (!device_.open(VIRTIO_ID_GPU)) return false;
  options_ = options;
  negotiate();
  CHECK(device_.queue_count() >= 2);
  const bool event_idx = (features_ & feature(VIRTIO_RING_F_EVENT_IDX)) != 0;
  control_.open(device_, kGpuControlQueue, 0, kNoVector, event_idx);
  cursor_.open(device_, kGpuCursorQueue, 0, kNoVector, event_idx);
  slots_ = static_cast<Slot*>(alloc_pages(sizeof(Slot) * kSlots / kPageSize));
  device_.driver_ok();
  return true;
}

void GpuDriver::restart() {
  negotiate();
  control_.reopen();
  cursor_.reopen();
  for (unsigned i = 0; i < kSlots; ++i) taken_[i] = answered_[i] = false;
  device_.driver_ok();
}

unsigned GpuDriver::send(const void* request, size_t bytes, const void* more, size_t more_bytes) {
  CHECK(bytes <= kRequestBytes);
  unsigned slot = 0;
  while (slot < kSlots && taken_[slot]) ++slot;
  CHECK(slot < kSlots);
  Slot& s = slots_[slot];
  memcpy(s.request, request, bytes);
  memset(s.response, 0, sizeof(virtio_gpu_ctrl_hdr));
  Buffer buffers[3];
  size_t count = 0;
  buffers[count++] = readable(s.request, bytes);
  if (more_bytes != 0) buffers[count++] = readable(more, more_bytes);
  buffers[count++] = writable(s.response, kResponseBytes);
  const uint16_t head = control_.add(buffers, count);
  slot_of_[head] = static_cast<uint8_t>(slot);
  taken_[slot] = true;
  answered_[slot] = false;
  control_.publish(head);
  control_.kick();
  return slot;
}

void GpuDriver::take_used() {
  Used used = {};
  while (control_.pop(used)) answered_[slot_of_[used.head]] = true;
}

bool GpuDriver::answered(unsigned slot) {
  take_used();
  return answered_[slot];
}

uint32_t GpuDriver::collect(unsigned slot, virtio_gpu_ctrl_hdr* header) {
  CHECK(taken_[slot]);
  CHECK_SOON(answered(slot));
  taken_[slot] = false;
  const auto* h = reinterpret_cast<const virtio_gpu_ctrl_hdr*>(slots_[slot].response);
  if (header != nullptr) *header = *h;
  return h->type;
}

uint32_t GpuDriver::command(const void* request, size_t bytes, const void* more, size_t more_bytes,
                            void* response, size_t response_bytes) {
  CHECK(response_bytes <= kResponseBytes);
  const unsigned slot = send(request, bytes, more, more_bytes);
  const uint32_t type = collect(slot);
  if (response != nullptr) memcpy(response, slots_[slot].response, response_bytes);
  return type;
}

uint32_t GpuDriver::display_info(virtio_gpu_resp_display_info* info) {
  virtio_gpu_ctrl_hdr r = {};
  r.type = VIRTIO_GPU_CMD_GET_DISPLAY_INFO;
  return command(&r, sizeof(r), nullptr, 0, info, sizeof(*info));
}

uint32_t GpuDriver::edid(uint32_t scanout, virtio_gpu_resp_edid* edid) {
  auto r = request_of<virtio_gpu_cmd_get_edid>(VIRTIO_GPU_CMD_GET_EDID);
  r.scanout = scanout;
  return command(&r, sizeof(r), nullptr, 0, edid, sizeof(*edid));
}

uint32_t GpuDriver::create_2d(uint32_t id, uint32_t format, uint32_t width, uint32_t height) {
  auto r = request_of<virtio_gpu_resource_create_2d>(VIRTIO_GPU_CMD_RESOURCE_CREATE_2D);
  r.resource_id = id;
  r.format = format;
  r.width = width;
  r.height = height;
  return command(&r, sizeof(r));
}

// The requests that are a header and a resource have one layout.
uint32_t GpuDriver::resource_command(uint32_t type, uint32_t id) {
  auto r = request_of<virtio_gpu_resource_unref>(type);
  r.resource_id = id;
  return command(&r, sizeof(r));
}

uint32_t GpuDriver::unref(uint32_t id) {
  return resource_command(VIRTIO_GPU_CMD_RESOURCE_UNREF, id);
}
uint32_t GpuDriver::detach(uint32_t id) {
  return resource_command(VIRTIO_GPU_CMD_RESOURCE_DETACH_BACKING, id);
}
uint32_t GpuDriver::unmap_blob(uint32_t id) {
  return resource_command(VIRTIO_GPU_CMD_RESOURCE_UNMAP_BLOB, id);
}

uint32_t GpuDriver::attach(uint32_t id, const virtio_gpu_mem_entry* entries, uint32_t count,
                           size_t bytes) {
  auto r = request_of<virtio_gpu_resource_attach_backing>(VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING);
  r.resource_id = id;
  r.nr_entries = count;
  return command(&r, sizeof(r), entries, bytes);
}

uint32_t GpuDriver::attach(uint32_t id, const void* memory, uint32_t bytes) {
  static virtio_gpu_mem_entry entry;
  entry = {physical(memory), bytes, 0};
  return attach(id, &entry, 1, sizeof(entry));
}

uint32_t GpuDriver::transfer(uint32_t id, virtio_gpu_rect rect, uint64_t offset) {
  auto r = request_of<virtio_gpu_transfer_to_host_2d>(VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D);
  r.resource_id = id;
  r.r = rect;
  r.offset = offset;
  return command(&r, sizeof(r));
}

uint32_t GpuDriver::set_scanout(uint32_t scanout, uint32_t id, virtio_gpu_rect rect) {
  auto r = request_of<virtio_gpu_set_scanout>(VIRTIO_GPU_CMD_SET_SCANOUT);
  r.scanout_id = scanout;
  r.resource_id = id;
  r.r = rect;
  return command(&r, sizeof(r));
}

uint32_t GpuDriver::flush(uint32_t id, virtio_gpu_rect rect) {
  auto r = request_of<virtio_gpu_resource_flush>(VIRTIO_GPU_CMD_RESOURCE_FLUSH);
  r.resource_id = id;
  r.r = rect;
  return command(&r, sizeof(r));
}

uint32_t GpuDriver::create_blob(const Blob& blob, const virtio_gpu_mem_entry* entries,
                                uint32_t count) {
  auto r = request_of<virtio_gpu_resource_create_blob>(VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB);
  r.hdr.ctx_id = blob.context;
  r.resource_id = blob.id;
  r.blob_mem = blob.memory;
  r.blob_flags = blob.flags;
  r.nr_entries = count;
  r.blob_id = blob.blob_id;
  r.size = blob.size;
  return command(&r, sizeof(r), entries, count * sizeof(*entries));
}

uint32_t GpuDriver::map_blob(uint32_t id, uint64_t offset, uint32_t* map_info) {
  auto r = request_of<virtio_gpu_resource_map_blob>(VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB);
  r.resource_id = id;
  r.offset = offset;
  virtio_gpu_resp_map_info answer = {};
  const uint32_t type = command(&r, sizeof(r), nullptr, 0, &answer, sizeof(answer));
  if (map_info != nullptr) *map_info = answer.map_info;
  return type;
}

uint32_t GpuDriver::set_scanout_blob(const ScanoutBlob& what) {
  auto r = request_of<virtio_gpu_set_scanout_blob>(VIRTIO_GPU_CMD_SET_SCANOUT_BLOB);
  r.r = what.r;
  r.scanout_id = what.scanout;
  r.resource_id = what.id;
  r.width = what.width;
  r.height = what.height;
  r.format = what.format;
  r.strides[0] = what.stride;
  r.offsets[0] = what.offset;
  return command(&r, sizeof(r));
}

uint32_t GpuDriver::capset_info(uint32_t index, virtio_gpu_resp_capset_info* info) {
  auto r = request_of<virtio_gpu_get_capset_info>(VIRTIO_GPU_CMD_GET_CAPSET_INFO);
  r.capset_index = index;
  return command(&r, sizeof(r), nullptr, 0, info, sizeof(*info));
}

uint32_t GpuDriver::capset(uint32_t id, uint32_t version, void* data, size_t bytes) {
  auto r = request_of<virtio_gpu_get_capset>(VIRTIO_GPU_CMD_GET_CAPSET);
  r.capset_id = id;
  r.capset_version = version;
  const unsigned slot = send(&r, sizeof(r));
  const uint32_t type = collect(slot);
  memcpy(data, slots_[slot].response + sizeof(virtio_gpu_ctrl_hdr), bytes);
  return type;
}

uint32_t GpuDriver::context_create(uint32_t context, uint32_t capset) {
  auto r = request_of<virtio_gpu_ctx_create>(VIRTIO_GPU_CMD_CTX_CREATE);
  r.hdr.ctx_id = context;
  r.context_init = capset;
  r.nlen = 5;
  memcpy(r.debug_name, "lethe", 5);
  return command(&r, sizeof(r));
}

uint32_t GpuDriver::context_destroy(uint32_t context) {
  auto r = request_of<virtio_gpu_ctx_destroy>(VIRTIO_GPU_CMD_CTX_DESTROY);
  r.hdr.ctx_id = context;
  return command(&r, sizeof(r));
}

uint32_t GpuDriver::context_attach(uint32_t context, uint32_t id) {
  auto r = request_of<virtio_gpu_ctx_resource>(VIRTIO_GPU_CMD_CTX_ATTACH_RESOURCE);
  r.hdr.ctx_id = context;
  r.resource_id = id;
  return command(&r, sizeof(r));
}

uint32_t GpuDriver::context_detach(uint32_t context, uint32_t id) {
  auto r = request_of<virtio_gpu_ctx_resource>(VIRTIO_GPU_CMD_CTX_DETACH_RESOURCE);
  r.hdr.ctx_id = context;
  r.resource_id = id;
  return command(&r, sizeof(r));
}

uint32_t GpuDriver::submit(uint32_t context, const void* commands, size_t bytes) {
  auto r = request_of<virtio_gpu_cmd_submit>(VIRTIO_GPU_CMD_SUBMIT_3D);
  r.hdr.ctx_id = context;
  r.size = static_cast<uint32_t>(bytes);
  return command(&r, sizeof(r), commands, bytes);
}

unsigned GpuDriver::submit_fenced(uint32_t context, const void* commands, size_t bytes,
                                  uint8_t ring, uint64_t fence) {
  auto r = request_of<virtio_gpu_cmd_submit>(VIRTIO_GPU_CMD_SUBMIT_3D);
  r.hdr.ctx_id = context;
  r.hdr.flags = VIRTIO_GPU_FLAG_FENCE | VIRTIO_GPU_FLAG_INFO_RING_IDX;
  r.hdr.fence_id = fence;
  r.hdr.ring_idx = ring;
  r.size = static_cast<uint32_t>(bytes);
  return send(&r, sizeof(r), commands, bytes);
}

void GpuDriver::send_cursor(uint32_t type, const virtio_gpu_update_cursor& update) {
  static virtio_gpu_update_cursor r;
  r = update;
  r.hdr.type = type;
  const Buffer b = readable(&r, sizeof(r));
  cursor_.submit_and_wait(&b, 1);
}

void GpuDriver::update_cursor(uint32_t scanout, uint32_t id, uint32_t x, uint32_t y, uint32_t hot_x,
                              uint32_t hot_y) {
  virtio_gpu_update_cursor update = {};
  update.pos = {scanout, x, y, 0};
  update.resource_id = id;
  update.hot_x = hot_x;
  update.hot_y = hot_y;
  send_cursor(VIRTIO_GPU_CMD_UPDATE_CURSOR, update);
}

void GpuDriver::move_cursor(uint32_t scanout, uint32_t x, uint32_t y) {
  virtio_gpu_update_cursor update = {};
  update.pos = {scanout, x, y, 0};
  send_cursor(VIRTIO_GPU_CMD_MOVE_CURSOR, update);
}

}  // namespace kernel
