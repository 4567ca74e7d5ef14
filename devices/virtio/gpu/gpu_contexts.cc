// The control queue's commands for contexts and capsets (virtio 1.2, 5.7.6.8 and 5.7.6.9), and
// polls.
#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "devices/virtio/gpu/gpu_work.h"

namespace lethe {
namespace {

constexpr uint32_t kOk = VIRTIO_GPU_RESP_OK_NODATA;
constexpr uint32_t kBad = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
constexpr uint32_t kNoResource = VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
constexpr uint32_t kNoContext = VIRTIO_GPU_RESP_ERR_INVALID_CONTEXT_ID;

}  // namespace

GpuWork::Context* GpuWork::find_context(uint32_t id) {
  const auto found = x_contexts.find(id);
  return found == x_contexts.end() ? nullptr : &found->second;
}

GpuWork::Context* GpuWork::find_serial(uint64_t serial) {
  const auto found = std::ranges::find_if(
      x_contexts, [&](const auto& entry) { return entry.second.serial == serial; });
  return found == x_contexts.end() ? nullptr : &found->second;
}

uint32_t GpuWork::get_capset_info(const Request& request, Response& response) {
  virtio_gpu_get_capset_info command;
  if (!request.as(command) || command.capset_index != 0) return kBad;
  response.capset_info.capset_id = window::kWindowCapset;
  response.capset_info.capset_max_version = window::kVersion;
  response.capset_info.capset_max_size = sizeof(window::Capset);
  return VIRTIO_GPU_RESP_OK_CAPSET_INFO;
}

uint32_t GpuWork::get_capset(const Request& request, Response& response) {
  virtio_gpu_get_capset command;
  if (!request.as(command) || command.capset_id != window::kWindowCapset ||
      command.capset_version > window::kVersion)
    return kBad;
  response.capset.data = {.version = window::kVersion,
                          .windows_max = window::kWindowsMax,
                          .command_bytes_max = window::kCommandBytesMax,
                          .event_bytes = sizeof(window::Event)};
  return VIRTIO_GPU_RESP_OK_CAPSET;
}

uint32_t GpuWork::context_create(const Request& request, Response& /*response*/) {
  virtio_gpu_ctx_create command;
  if (!request.as(command)) return kBad;
  const uint32_t id = request.header.ctx_id;
  if (id == 0 || find_context(id) != nullptr) return kNoContext;
  const uint32_t capset = (x_features & gpu_bit(VIRTIO_GPU_F_CONTEXT_INIT)) != 0
                              ? command.context_init & VIRTIO_GPU_CONTEXT_INIT_CAPSET_ID_MASK
                              : 0;
  // Without a capset it is what Linux makes for each opener of the device: a name, no more.
  if (capset != 0 && capset != window::kWindowCapset) return kBad;
  if (x_contexts.size() >= kContextsMax) return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  make_context(id, ++x_serials, capset == window::kWindowCapset);
  return kOk;
}

void GpuWork::make_context(uint32_t id, uint64_t serial, bool windows) {
  Context& context = x_contexts[id];
  context.serial = serial;
  if (windows)
    context.windows =
        std::make_unique<WindowContext>(x_gui, x_resources, serial, [this, id] { check_poll(id); });
}

uint32_t GpuWork::context_destroy(const Request& request, Response& /*response*/) {
  Context* const context = find_context(request.header.ctx_id);
  if (context == nullptr) return kNoContext;
  finish_poll(*context);
  x_resources.context_gone(context->serial);
  x_contexts.erase(request.header.ctx_id);
  return kOk;
}

uint32_t GpuWork::context_attach(const Request& request, Response& /*response*/) {
  virtio_gpu_ctx_resource command;
  if (!request.as(command)) return kBad;
  const Context* const context = find_context(request.header.ctx_id);
  if (context == nullptr) return kNoContext;
  Resource* const resource = x_resources.find(command.resource_id);
  if (resource == nullptr) return kNoResource;
  const uint32_t answer = x_resources.attach_to(context->serial, *resource);
  if (answer != kOk) return answer;
  if (resource->home == 0 && context->windows) resource->home = context->serial;
  return kOk;
}

uint32_t GpuWork::context_detach(const Request& request, Response& /*response*/) {
  virtio_gpu_ctx_resource command;
  if (!request.as(command)) return kBad;
  const Context* const context = find_context(request.header.ctx_id);
  if (context == nullptr) return kNoContext;
  Resource* const resource = x_resources.find(command.resource_id);
  if (resource == nullptr) return kNoResource;
  // What windows show stays: it was theirs when they began.
  return x_resources.detach_from(context->serial, *resource);
}

uint32_t GpuWork::submit(const Request& request, Response& /*response*/) {
  virtio_gpu_cmd_submit command;
  if (!request.as(command)) return kBad;
  Context* const context = find_context(request.header.ctx_id);
  if (context == nullptr) return kNoContext;
  const Chain& chain = request.chain;
  if (!context->windows || command.size > window::kCommandBytesMax ||
      command.size > chain.readable_bytes() - sizeof command)
    return kBad;
  const auto commands = std::span(x_scratch).first(command.size);
  if (chain.copy_from_readable(sizeof command, commands) != commands.size()) return kBad;
  const auto outcome = context->windows->run(commands);
  // Held only where the guest does not wait for it in line with other work.
  constexpr uint32_t kFenced = VIRTIO_GPU_FLAG_FENCE | VIRTIO_GPU_FLAG_INFO_RING_IDX;
  x_poll_wanted = outcome.polls && (request.header.flags & kFenced) == kFenced &&
                  request.header.ring_idx == window::kEventRing;
  return outcome.response;
}

// --- polls

void GpuWork::hold_poll(Context& context, Chain chain, const virtio_gpu_ctrl_hdr& answer) {
  finish_poll(context);  // one waits at a time
  context.poll.emplace(std::move(chain), answer);
  if (context.windows->poll_due()) finish_poll(context);
}

void GpuWork::check_poll(uint32_t id) {
  Context* const context = find_context(id);
  if (context == nullptr || !context->poll || !context->windows->poll_due()) return;
  finish_poll(*context);
  x_lines[GpuDevice::kControlQueue].queue->interrupt_if_needed();
}

// Who calls from serve() need not interrupt.
void GpuWork::finish_poll(Context& context) {
  if (!context.poll) return;
  // SAFETY: the bytes of a trivially copyable structure.
  const std::span<const uint8_t> bytes{reinterpret_cast<const uint8_t*>(&context.poll->answer),
                                       sizeof context.poll->answer};
  Chain chain = std::move(context.poll->chain);
  context.poll.reset();
  chain.complete(static_cast<uint32_t>(chain.copy_to_writable(0, bytes)));
}

void GpuWork::resource_released(uint64_t home, uint32_t resource) {
  Context* const context = find_serial(home);
  if (context != nullptr && context->windows) context->windows->resource_released(resource);
}

void GpuWork::drop_contexts() {
  // Their polls went with the queue.
  x_contexts.clear();
}

}  // namespace lethe
