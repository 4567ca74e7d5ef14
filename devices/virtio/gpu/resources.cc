#include "devices/virtio/gpu/resources.h"

#include <utility>

#include "base/log.h"
#include "devices/virtio/gpu/pixels.h"

namespace lethe {

Resources::~Resources() {
  clear();
  x_gui.forget_listener(*this);
}

Resource* Resources::find(uint32_t id) {
  const auto found = x_resources.find(id);
  return found == x_resources.end() ? nullptr : &found->second;
}

// --- creation

Resource* Resources::add(uint32_t id) {
  Resource& resource = x_resources[id];
  resource.id = id;
  return &resource;
}

bool Resources::make_buffer(Resource& resource) {
  auto made = x_gui.create_buffer(resource.bytes, *this);
  if (!made) {
    LETHE_LOG_LIMITED(LogModule::kGui, "gpu: resource {}: {}", resource.id, made.error().text);
    return false;
  }
  resource.buffer = *made;
  resource.memory = x_gui.buffer(*made);
  return true;
}

uint32_t Resources::create_2d(const virtio_gpu_resource_create_2d& request) {
  if (request.resource_id == 0 || find(request.resource_id) != nullptr)
    return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
  if (!gui::known_format(request.format) || !valid_size(request.width, request.height))
    return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  if (x_resources.size() >= kResourcesMax) return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  Resource* const resource = add(request.resource_id);
  resource->kind = Resource::Kind::k2d;
  resource->format = request.format;
  resource->width = request.width;
  resource->height = request.height;
  resource->bytes = uint64_t{resource->stride()} * request.height;
  if (make_buffer(*resource)) return VIRTIO_GPU_RESP_OK_NODATA;
  x_resources.erase(request.resource_id);
  return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
}

uint32_t Resources::create_blob(const virtio_gpu_resource_create_blob& request, Backing backing,
                                uint64_t home) {
  constexpr uint32_t kFlags = VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE |
                              VIRTIO_GPU_BLOB_FLAG_USE_SHAREABLE |
                              VIRTIO_GPU_BLOB_FLAG_USE_CROSS_DEVICE;
  if (request.resource_id == 0 || find(request.resource_id) != nullptr)
    return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
  const bool guest = request.blob_mem == VIRTIO_GPU_BLOB_MEM_GUEST;
  const bool host = request.blob_mem == VIRTIO_GPU_BLOB_MEM_HOST3D;
  // Ids of blobs name what a 3D context made: there is nothing but 0, plain memory. HOST3D_GUEST
  // would be both at once.
  if ((!guest && !host) || request.blob_id != 0 || (request.blob_flags & ~kFlags) != 0 ||
      request.size == 0 || request.size > gui::kBufferBytesMax ||
      (guest && !backing.empty() && backing.bytes() < request.size) ||
      (host && request.nr_entries != 0))
    return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  if (x_resources.size() >= kResourcesMax || !take_pieces(backing))
    return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  Resource* const resource = add(request.resource_id);
  resource->kind = host ? Resource::Kind::kHostBlob : Resource::Kind::kGuestBlob;
  resource->mappable = host && (request.blob_flags & VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE) != 0;
  resource->bytes = request.size;
  resource->home = home;
  resource->backing = std::move(backing);
  if (guest || make_buffer(*resource)) return VIRTIO_GPU_RESP_OK_NODATA;
  x_resources.erase(request.resource_id);
  return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
}

// --- backing

bool Resources::take_pieces(const Backing& backing) {
  if (backing.pieces() > kBackingPiecesMax - x_pieces) return false;
  x_pieces += backing.pieces();
  return true;
}

void Resources::drop_backing(Resource& resource) {
  x_pieces -= resource.backing.pieces();
  resource.backing = {};
}

uint32_t Resources::attach(Resource& resource, Backing backing) {
  if (resource.kind == Resource::Kind::kHostBlob || !resource.backing.empty() ||
      (resource.blob() && backing.bytes() < resource.bytes))
    return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  if (!take_pieces(backing)) return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  resource.backing = std::move(backing);
  return VIRTIO_GPU_RESP_OK_NODATA;
}

uint32_t Resources::detach(Resource& resource) {
  if (resource.backing.empty()) return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  drop_backing(resource);
  return VIRTIO_GPU_RESP_OK_NODATA;
}

uint32_t Resources::transfer(const virtio_gpu_transfer_to_host_2d& request) {
  Resource* const resource = find(request.resource_id);
  if (resource == nullptr || resource->blob()) return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
  const virtio_gpu_rect& r = request.r;
  if (!within(r, resource->width, resource->height)) return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  const uint32_t stride = resource->stride();
  const uint64_t line_bytes = uint64_t{r.width} * kPixelBytes;
  // Line by line: the backing has the resource's stride (5.7.6.8).
  if (resource->backing.empty() ||
      !lines_fit(resource->backing.bytes(), request.offset, stride, line_bytes, r.height))
    return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  x_copied += line_bytes * r.height;
  resource->backing.copy_lines(
      request.offset, stride, line_bytes, r.height,
      resource->memory->data() + uint64_t{r.y} * stride + uint64_t{r.x} * kPixelBytes);
  return VIRTIO_GPU_RESP_OK_NODATA;
}

const SharedBuffer* Resources::show(Resource& resource) {
  if (resource.memory == nullptr) (void)make_buffer(resource);
  return resource.memory;
}

void Resources::refresh(const Resource& resource, uint64_t offset, uint32_t stride, uint32_t width,
                        uint32_t height) {
  if (resource.kind != Resource::Kind::kGuestBlob || resource.memory == nullptr) return;
  const uint64_t line_bytes = uint64_t{width} * kPixelBytes;
  // Its backing may have been detached since.
  if (!lines_fit(resource.backing.bytes(), offset, stride, line_bytes, height)) return;
  x_copied += line_bytes * height;
  resource.backing.copy_lines(offset, stride, line_bytes, height, resource.memory->data() + offset);
}

// --- contexts

uint32_t Resources::attach_to(uint64_t context, Resource& resource) {
  if (attached(context, resource)) return VIRTIO_GPU_RESP_OK_NODATA;
  if (x_attachments.size() >= kAttachmentsMax) return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  x_attachments.emplace(context, resource.id);
  resource.attached.push_back(context);
  return VIRTIO_GPU_RESP_OK_NODATA;
}

uint32_t Resources::detach_from(uint64_t context, Resource& resource) {
  if (x_attachments.erase({context, resource.id}) == 0)
    return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  std::erase(resource.attached, context);
  return VIRTIO_GPU_RESP_OK_NODATA;
}

void Resources::context_gone(uint64_t context) {
  const auto begin = x_attachments.lower_bound({context, 0});
  const auto end = x_attachments.lower_bound({context + 1, 0});
  for (auto at = begin; at != end; ++at) std::erase(find(at->second)->attached, context);
  x_attachments.erase(begin, end);
}

// --- the window

uint32_t Resources::map(Resource& resource, uint64_t offset) {
  if (!resource.mappable || resource.mapped_at || !x_window.free(offset, resource.memory->bytes()))
    return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  if (const auto mapped = x_window.map(offset, *resource.memory); !mapped) {
    LETHE_LOG_LIMITED(LogModule::kGui, "gpu: resource {}: {}", resource.id, mapped.error().text);
    return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  }
  resource.mapped_at = offset;
  return VIRTIO_GPU_RESP_OK_MAP_INFO;
}

uint32_t Resources::unmap(Resource& resource) {
  if (!resource.mapped_at) return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  if (const auto unmapped = x_window.unmap(*resource.mapped_at); !unmapped) {
    LETHE_LOG_LIMITED(LogModule::kGui, "gpu: resource {}: {}", resource.id, unmapped.error().text);
    return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  }
  resource.mapped_at.reset();
  return VIRTIO_GPU_RESP_OK_NODATA;
}

// --- the end

uint32_t Resources::unref(Resource& resource) {
  if (resource.mapped_at)
    if (const uint32_t answer = unmap(resource); answer != VIRTIO_GPU_RESP_OK_NODATA) return answer;
  drop_backing(resource);
  for (const uint64_t context : resource.attached) x_attachments.erase({context, resource.id});
  if (resource.buffer.valid()) {
    if (resource.home != 0)
      x_leaving.emplace(resource.buffer.generation, Leaving{resource.home, resource.id});
    x_gui.release_buffer(resource.buffer);
  } else if (resource.home != 0 && on_released) {
    on_released(resource.home, resource.id);  // a GUEST blob that nobody saw
  }
  x_resources.erase(resource.id);
  return VIRTIO_GPU_RESP_OK_NODATA;
}

void Resources::clear() {
  if (const auto cleared = x_window.clear(); !cleared)
    log_error(LogModule::kGui, "gpu: {}", cleared.error().text);
  for (auto& [id, resource] : x_resources)
    if (resource.buffer.valid()) x_gui.release_buffer(resource.buffer);
  x_resources.clear();
  x_attachments.clear();
  x_leaving.clear();
  x_pieces = 0;
}

void Resources::released(BufferId buffer) {
  const auto found = x_leaving.find(buffer.generation);
  if (found == x_leaving.end()) return;
  const Leaving leaving = found->second;
  x_leaving.erase(found);
  if (on_released) on_released(leaving.home, leaving.id);
}

}  // namespace lethe
