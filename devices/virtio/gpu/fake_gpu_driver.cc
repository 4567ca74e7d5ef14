#include "devices/virtio/gpu/fake_gpu_driver.h"

#include "base/assert.h"

namespace lethe {

FakeGpuDriver::FakeGpuDriver(const GuestMemory& memory, VirtioDevice& device, GuestAddr heap)
    : x_memory(memory), x_transport(memory, device, heap) {
  restart();
}

void FakeGpuDriver::restart(uint64_t wanted) {
  x_transport.reset();
  x_transport.start(wanted);
  x_request = alloc(kRequestMax);
  x_more = alloc(kMoreMax);
  x_response = alloc(kResponseMax);
  x_poll_request = alloc(2 * kRequestMax);
  x_poll_response = alloc(2 * kResponseMax);
  x_polls = 0;
  x_poll_answers.clear();
  x_done.clear();
}

std::optional<uint32_t> FakeGpuDriver::wait_for(uint16_t head, std::chrono::milliseconds patience) {
  FakeDriver& driver = x_transport.driver(GpuDevice::kControlQueue);
  const Deadline deadline = deadline_in(patience);
  while (true) {
    if (const auto found = x_done.find(head); found != x_done.end()) {
      const uint32_t written = found->second;
      x_done.erase(found);
      return written;
    }
    const auto used = driver.wait_used(x_transport.interrupt(GpuDevice::kControlQueue), deadline);
    if (!used) return std::nullopt;
    x_done[used->head] = used->written;
  }
}

uint32_t FakeGpuDriver::raw(std::span<const uint8_t> request, std::span<const uint8_t> more,
                            uint32_t room) {
  LETHE_ASSERT(request.size() <= kRequestMax && more.size() <= kMoreMax && room <= kResponseMax);
  LETHE_ASSERT(x_memory.write(x_request, request) && x_memory.write(x_more, more));
  LETHE_ASSERT(x_memory.store(x_response, virtio_gpu_resp_edid{}));
  std::vector<FakeBuffer> buffers;
  if (!request.empty())
    buffers.push_back({x_request, static_cast<uint32_t>(request.size()), false});
  if (!more.empty()) buffers.push_back({x_more, static_cast<uint32_t>(more.size()), false});
  if (room > 0) buffers.push_back({x_response, room, true});
  const auto head = x_transport.driver(GpuDevice::kControlQueue).add(buffers);
  LETHE_ASSERT(head);
  x_transport.kick_if_wanted(GpuDevice::kControlQueue);
  const auto written = wait_for(*head, FakeTransport::kPatience);
  LETHE_ASSERT(written);  // the device answers
  x_written = *written;
  return x_written < sizeof(virtio_gpu_ctrl_hdr) ? 0 : answer<virtio_gpu_ctrl_hdr>().type;
}

uint32_t FakeGpuDriver::create_2d(uint32_t id, uint32_t width, uint32_t height, uint32_t format) {
  return send(VIRTIO_GPU_CMD_RESOURCE_CREATE_2D,
              virtio_gpu_resource_create_2d{{}, id, format, width, height});
}

uint32_t FakeGpuDriver::resource(uint32_t type, uint32_t id) {
  return send(type, virtio_gpu_resource_unref{{}, id, 0});
}
uint32_t FakeGpuDriver::unref(uint32_t id) { return resource(VIRTIO_GPU_CMD_RESOURCE_UNREF, id); }
uint32_t FakeGpuDriver::detach(uint32_t id) {
  return resource(VIRTIO_GPU_CMD_RESOURCE_DETACH_BACKING, id);
}
uint32_t FakeGpuDriver::unmap(uint32_t id) {
  return resource(VIRTIO_GPU_CMD_RESOURCE_UNMAP_BLOB, id);
}

uint32_t FakeGpuDriver::attach(uint32_t id, const std::vector<virtio_gpu_mem_entry>& entries) {
  return send(VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING,
              virtio_gpu_resource_attach_backing{{}, id, static_cast<uint32_t>(entries.size())},
              {reinterpret_cast<const uint8_t*>(entries.data()),
               entries.size() * sizeof(virtio_gpu_mem_entry)});
}

uint32_t FakeGpuDriver::transfer(uint32_t id, const virtio_gpu_rect& r, uint64_t offset) {
  return send(VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D,
              virtio_gpu_transfer_to_host_2d{{}, r, offset, id, 0});
}

uint32_t FakeGpuDriver::set_scanout(uint32_t scanout, uint32_t id, const virtio_gpu_rect& r) {
  return send(VIRTIO_GPU_CMD_SET_SCANOUT, virtio_gpu_set_scanout{{}, r, scanout, id});
}

uint32_t FakeGpuDriver::flush(uint32_t id, const virtio_gpu_rect& r) {
  return send(VIRTIO_GPU_CMD_RESOURCE_FLUSH, virtio_gpu_resource_flush{{}, r, id, 0});
}

uint32_t FakeGpuDriver::create_blob(uint32_t id, uint64_t size, uint32_t context, uint32_t memory,
                                    const std::vector<virtio_gpu_mem_entry>& entries) {
  virtio_gpu_resource_create_blob command{};
  command.hdr.ctx_id = context;
  command.resource_id = id;
  command.blob_mem = memory;
  command.blob_flags = memory == VIRTIO_GPU_BLOB_MEM_HOST3D ? VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE : 0;
  command.nr_entries = static_cast<uint32_t>(entries.size());
  command.size = size;
  return send(VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB, command,
              {reinterpret_cast<const uint8_t*>(entries.data()),
               entries.size() * sizeof(virtio_gpu_mem_entry)});
}

uint32_t FakeGpuDriver::map(uint32_t id, uint64_t offset) {
  return send(VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB, virtio_gpu_resource_map_blob{{}, id, 0, offset});
}

uint32_t FakeGpuDriver::context_create(uint32_t context, uint32_t capset) {
  virtio_gpu_ctx_create command{};
  command.hdr.ctx_id = context;
  command.context_init = capset;
  return send(VIRTIO_GPU_CMD_CTX_CREATE, command);
}

uint32_t FakeGpuDriver::in_context(uint32_t type, uint32_t context, uint32_t id) {
  virtio_gpu_ctx_resource command{};
  command.hdr.ctx_id = context;
  command.resource_id = id;
  return send(type, command);
}
uint32_t FakeGpuDriver::context_destroy(uint32_t context) {
  return in_context(VIRTIO_GPU_CMD_CTX_DESTROY, context, 0);
}
uint32_t FakeGpuDriver::context_attach(uint32_t context, uint32_t id) {
  return in_context(VIRTIO_GPU_CMD_CTX_ATTACH_RESOURCE, context, id);
}
uint32_t FakeGpuDriver::context_detach(uint32_t context, uint32_t id) {
  return in_context(VIRTIO_GPU_CMD_CTX_DETACH_RESOURCE, context, id);
}

uint32_t FakeGpuDriver::submit(uint32_t context, std::span<const uint8_t> commands) {
  virtio_gpu_cmd_submit command{};
  command.hdr.ctx_id = context;
  command.size = static_cast<uint32_t>(commands.size());
  return send(VIRTIO_GPU_CMD_SUBMIT_3D, command, commands);
}

uint32_t FakeGpuDriver::cursor(uint32_t type, uint32_t scanout, uint32_t id, uint32_t hot_x,
                               uint32_t hot_y) {
  virtio_gpu_update_cursor command{};
  command.hdr.type = type;
  command.pos.scanout_id = scanout;
  command.resource_id = id;
  command.hot_x = hot_x;
  command.hot_y = hot_y;
  LETHE_ASSERT(x_memory.store(x_request, command));
  const FakeBuffer buffer{x_request, sizeof command, false};
  return x_transport.request(GpuDevice::kCursorQueue, {&buffer, 1}).value_or(1);
}

void FakeGpuDriver::flood(uint32_t pairs) {
  virtio_gpu_resource_create_blob create{};
  create.hdr.type = VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB;
  create.resource_id = 2;
  create.blob_mem = VIRTIO_GPU_BLOB_MEM_HOST3D;
  create.size = kPageBytes;
  virtio_gpu_resource_unref unref{};
  unref.hdr.type = VIRTIO_GPU_CMD_RESOURCE_UNREF;
  unref.resource_id = 2;
  LETHE_ASSERT(x_memory.store(x_request, create) && x_memory.store(x_more, unref));
  const std::array<FakeBuffer, 2> first{FakeBuffer{x_request, sizeof create, false},
                                        FakeBuffer{x_response, kResponseMax, true}};
  const std::array<FakeBuffer, 2> second{FakeBuffer{x_more, sizeof unref, false},
                                         FakeBuffer{x_response, kResponseMax, true}};
  FakeDriver& driver = x_transport.driver(GpuDevice::kControlQueue);
  while (pairs > 0) {
    uint32_t sent = 0;
    for (; pairs > 0 && driver.free_descriptors() >= 4; --pairs, sent += 2)
      LETHE_ASSERT(driver.add(first) && driver.add(second));
    x_transport.kick_if_wanted(GpuDevice::kControlQueue);
    const Deadline deadline = deadline_in(FakeTransport::kPatience);
    for (; sent > 0; --sent)
      LETHE_ASSERT(driver.wait_used(x_transport.interrupt(GpuDevice::kControlQueue), deadline));
  }
}

uint16_t FakeGpuDriver::start_poll(uint32_t context, uint32_t tail, uint64_t fence, uint8_t ring) {
  struct {
    virtio_gpu_cmd_submit submit{};
    window::Poll poll{};
  } command;
  command.submit.hdr.type = VIRTIO_GPU_CMD_SUBMIT_3D;
  command.submit.hdr.flags = VIRTIO_GPU_FLAG_FENCE | VIRTIO_GPU_FLAG_INFO_RING_IDX;
  command.submit.hdr.fence_id = fence;
  command.submit.hdr.ctx_id = context;
  command.submit.hdr.ring_idx = ring;
  command.submit.size = sizeof command.poll;
  command.poll = {{window::kPoll, sizeof(window::Poll)}, tail, 0};
  const unsigned slot = x_polls++ % 2;
  const GuestAddr request{x_poll_request.value + slot * kRequestMax};
  const GuestAddr response{x_poll_response.value + slot * kResponseMax};
  LETHE_ASSERT(x_memory.store(request, command));
  const std::array<FakeBuffer, 2> buffers{FakeBuffer{request, sizeof command, false},
                                          FakeBuffer{response, kResponseMax, true}};
  const auto head = x_transport.driver(GpuDevice::kControlQueue).add(buffers);
  LETHE_ASSERT(head);
  x_poll_answers[*head] = response;
  x_transport.kick_if_wanted(GpuDevice::kControlQueue);
  return *head;
}

std::optional<virtio_gpu_ctrl_hdr> FakeGpuDriver::poll_answer(uint16_t head,
                                                              std::chrono::milliseconds patience) {
  if (!wait_for(head, patience)) return std::nullopt;
  return x_memory.load<virtio_gpu_ctrl_hdr>(x_poll_answers.at(head));
}

}  // namespace lethe
