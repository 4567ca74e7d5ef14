// The control queue's commands: which there are, and those of 2D and blobs (virtio 1.2, 5.7.6.8).
#include "base/log.h"
#include "devices/virtio/gpu/gpu_work.h"

namespace lethe {
namespace {

constexpr uint32_t kBad = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
constexpr uint32_t kNoResource = VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;

}  // namespace

// What is not listed, the other 3D commands for example, is answered with ERR_UNSPEC.
GpuWork::Command GpuWork::command(uint32_t type) {
  const uint64_t edid = gpu_bit(VIRTIO_GPU_F_EDID);
  const uint64_t blob = gpu_bit(VIRTIO_GPU_F_RESOURCE_BLOB);
  const uint64_t context = gpu_bit(VIRTIO_GPU_F_VIRGL);
  constexpr size_t kHeader = sizeof(virtio_gpu_ctrl_hdr);
  switch (type) {
    case VIRTIO_GPU_CMD_GET_DISPLAY_INFO:
      return {0, sizeof(virtio_gpu_resp_display_info), &GpuWork::get_display_info};
    case VIRTIO_GPU_CMD_GET_EDID:
      return {edid, sizeof(virtio_gpu_resp_edid), &GpuWork::get_edid};
    case VIRTIO_GPU_CMD_RESOURCE_CREATE_2D:
      return {0, kHeader, &GpuWork::create_2d};
    case VIRTIO_GPU_CMD_RESOURCE_UNREF:
      return {0, kHeader, &GpuWork::unref};
    case VIRTIO_GPU_CMD_SET_SCANOUT:
      return {0, kHeader, &GpuWork::set_scanout};
    case VIRTIO_GPU_CMD_SET_SCANOUT_BLOB:
      return {blob, kHeader, &GpuWork::set_scanout_blob};
    case VIRTIO_GPU_CMD_RESOURCE_FLUSH:
      return {0, kHeader, &GpuWork::flush};
    case VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D:
      return {0, kHeader, &GpuWork::transfer};
    case VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING:
      return {0, kHeader, &GpuWork::attach_backing};
    case VIRTIO_GPU_CMD_RESOURCE_DETACH_BACKING:
      return {0, kHeader, &GpuWork::detach_backing};
    case VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB:
      return {blob, kHeader, &GpuWork::create_blob};
    case VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB:
      return {blob, sizeof(virtio_gpu_resp_map_info), &GpuWork::map_blob};
    case VIRTIO_GPU_CMD_RESOURCE_UNMAP_BLOB:
      return {blob, kHeader, &GpuWork::unmap_blob};
    case VIRTIO_GPU_CMD_GET_CAPSET_INFO:
      return {0, sizeof(virtio_gpu_resp_capset_info), &GpuWork::get_capset_info};
    case VIRTIO_GPU_CMD_GET_CAPSET:
      return {0, kHeader + sizeof(window::Capset), &GpuWork::get_capset};
    case VIRTIO_GPU_CMD_CTX_CREATE:
      return {context, kHeader, &GpuWork::context_create};
    case VIRTIO_GPU_CMD_CTX_DESTROY:
      return {context, kHeader, &GpuWork::context_destroy};
    case VIRTIO_GPU_CMD_CTX_ATTACH_RESOURCE:
      return {context, kHeader, &GpuWork::context_attach};
    case VIRTIO_GPU_CMD_CTX_DETACH_RESOURCE:
      return {context, kHeader, &GpuWork::context_detach};
    case VIRTIO_GPU_CMD_SUBMIT_3D:
      return {context, kHeader, &GpuWork::submit};
    default:
      return {};
  }
}

uint32_t GpuWork::get_display_info(const Request& /*request*/, Response& response) {
  response.display = x_screens.display_info();
  x_sizes_told = x_sizes;
  return VIRTIO_GPU_RESP_OK_DISPLAY_INFO;
}

uint32_t GpuWork::get_edid(const Request& request, Response& response) {
  virtio_gpu_cmd_get_edid command;
  return request.as(command) ? x_screens.edid(command.scanout, response.edid) : kBad;
}

uint32_t GpuWork::create_2d(const Request& request, Response& /*response*/) {
  virtio_gpu_resource_create_2d command;
  return request.as(command) ? x_resources.create_2d(command) : kBad;
}

uint32_t GpuWork::unref(const Request& request, Response& /*response*/) {
  virtio_gpu_resource_unref command;
  if (!request.as(command)) return kBad;
  Resource* const resource = x_resources.find(command.resource_id);
  if (resource == nullptr) return kNoResource;
  // Whoever shows it lets go of it first.
  x_screens.forget(*resource);
  if (resource->shown > 0 || resource->event_ring)
    for (auto& [id, context] : x_contexts)
      if (context.windows) context.windows->forget(*resource);
  return x_resources.unref(*resource);
}

uint32_t GpuWork::set_scanout(const Request& request, Response& /*response*/) {
  virtio_gpu_set_scanout command;
  return request.as(command) ? x_screens.set_scanout(command) : kBad;
}

uint32_t GpuWork::set_scanout_blob(const Request& request, Response& /*response*/) {
  virtio_gpu_set_scanout_blob command;
  return request.as(command) ? x_screens.set_scanout_blob(command) : kBad;
}

uint32_t GpuWork::flush(const Request& request, Response& /*response*/) {
  virtio_gpu_resource_flush command;
  if (!request.as(command)) return kBad;
  ++x_shared.counters.flushes;
  return x_screens.flush(command);
}

uint32_t GpuWork::transfer(const Request& request, Response& /*response*/) {
  virtio_gpu_transfer_to_host_2d command;
  return request.as(command) ? x_resources.transfer(command) : kBad;
}

uint32_t GpuWork::attach_backing(const Request& request, Response& /*response*/) {
  virtio_gpu_resource_attach_backing command;
  if (!request.as(command)) return kBad;
  Resource* const resource = x_resources.find(command.resource_id);
  if (resource == nullptr) return kNoResource;
  auto backing =
      Backing::read(x_memory, request.chain, sizeof command, command.nr_entries, x_scratch);
  return backing ? x_resources.attach(*resource, std::move(*backing)) : kBad;
}

uint32_t GpuWork::detach_backing(const Request& request, Response& /*response*/) {
  virtio_gpu_resource_detach_backing command;
  if (!request.as(command)) return kBad;
  Resource* const resource = x_resources.find(command.resource_id);
  return resource != nullptr ? x_resources.detach(*resource) : kNoResource;
}

uint32_t GpuWork::create_blob(const Request& request, Response& /*response*/) {
  virtio_gpu_resource_create_blob command;
  if (!request.as(command)) return kBad;
  const uint32_t context_id = request.header.ctx_id;
  const Context* const context = find_context(context_id);
  // HOST3D is a context's (5.7.6.8), guest memory nobody's.
  if (context_id != 0 && context == nullptr) return VIRTIO_GPU_RESP_ERR_INVALID_CONTEXT_ID;
  auto backing =
      Backing::read(x_memory, request.chain, sizeof command, command.nr_entries, x_scratch);
  if (!backing) return kBad;
  return x_resources.create_blob(command, std::move(*backing),
                                 context != nullptr ? context->serial : 0);
}

uint32_t GpuWork::map_blob(const Request& request, Response& response) {
  virtio_gpu_resource_map_blob command;
  if (!request.as(command)) return kBad;
  Resource* const resource = x_resources.find(command.resource_id);
  if (resource == nullptr) return kNoResource;
  response.map.map_info = VIRTIO_GPU_MAP_CACHE_CACHED;
  return x_resources.map(*resource, command.offset);
}

uint32_t GpuWork::unmap_blob(const Request& request, Response& /*response*/) {
  virtio_gpu_resource_unmap_blob command;
  if (!request.as(command)) return kBad;
  Resource* const resource = x_resources.find(command.resource_id);
  return resource != nullptr ? x_resources.unmap(*resource) : kNoResource;
}

}  // namespace lethe
