// The queues: what comes in is copied, checked and handed to its command; answers go back in order,
// and at once, but for polls.
#include "devices/virtio/gpu/gpu_work.h"

#include <cstring>

#include "base/log.h"

namespace lethe {

GpuWork::GpuWork(const GuestMemory& memory, Gui& gui, HostWindow& window, ScreenInput* input,
                 GpuShared& shared)
    : x_memory(memory),
      x_gui(gui),
      x_shared(shared),
      x_resources(gui, window),
      x_screens(gui, x_resources, input),
      x_scratch(window::kCommandBytesMax),
      x_tell_again(gui.loop().make_timer([this] {
        if (x_sizes != x_sizes_told) resized();
      })) {
  x_resources.on_released = [this](uint64_t home, uint32_t id) { resource_released(home, id); };
  x_screens.on_resized = [this] {
    ++x_sizes;
    resized();
  };
  x_shared.work.store(this);
}

GpuWork::~GpuWork() {
  x_shared.work.store(nullptr);
  reset();
}

Result<> GpuWork::open(const GpuOptions& options) {
  return x_screens.open(options.screens, options.width, options.height);
}

// --- life

void GpuWork::start(uint64_t features, VirtioHost& host) {
  x_features = features;
  x_host = &host;
}

void GpuWork::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  x_frozen = false;
  Line& line = x_lines[index];
  line.queue = std::move(queue);
  line.kick = &kick;
  auto watch = x_gui.loop().watch_event(kick.fd(), [this, index] { serve(index); });
  if (!watch) {
    LETHE_LOG_LIMITED(LogModule::kGui, "gpu: cannot watch a queue: {}", watch.error().text);
    return x_host->needs_reset("the host is out of descriptors");
  }
  line.watch = std::move(*watch);
  serve(index);
}

void GpuWork::stop_queue(uint16_t index) {
  Line& line = x_lines[index];
  if (!line.queue) return;
  line.watch.reset();
  if (index == GpuDevice::kControlQueue) keep_polls();
  line.queue.reset();
  line.kick = nullptr;
}

void GpuWork::reset() {
  x_tell_again->cancel();
  x_frozen = false;
  x_kept_polls.clear();
  for (uint16_t i = 0; i < kQueues; ++i) stop_queue(i);
  drop_contexts();
  x_screens.clear();
  x_resources.clear();
  x_host = nullptr;
  x_features = 0;
  x_shared.events.store(0);
  x_sizes_told = x_sizes;
  count_now();
}

void GpuWork::drop_if_broken(uint16_t index) {
  const Line& line = x_lines[index];
  if (!line.queue || !line.queue->broken()) return;
  x_host->needs_reset(line.queue->broken_reason());
  stop_queue(index);
}

// --- display information changes

void GpuWork::resized() {
  if (x_host == nullptr) return;
  x_shared.events.fetch_or(VIRTIO_GPU_EVENT_DISPLAY);
  x_host->config_changed();
}

// Linux reads the events, asks, and clears them then: a change in between would be cleared unseen.
void GpuWork::events_cleared() {
  if (x_host != nullptr && x_sizes != x_sizes_told) x_tell_again->start(kTellAgain);
}

// --- queues

void GpuWork::serve(uint16_t index) {
  Line& line = x_lines[index];
  unsigned left = kCommandsMax;

  const uint64_t copied_max = x_resources.copied() + kCopyBytesMax;
  do {
    while (line.queue && left > 0 && x_resources.copied() < copied_max) {
      auto chain = line.queue->pop();
      if (!chain) break;
      --left;
      if (!x_kept_polls.empty() && index == GpuDevice::kControlQueue && poll_goes_on(*chain))
        continue;
      if (index == GpuDevice::kControlQueue)
        serve_control(std::move(*chain));
      else
        serve_cursor(std::move(*chain));
    }
    if (!line.queue) return;
    if (left == 0 || x_resources.copied() >= copied_max) {
      line.kick->signal();  // come back after the loop's other work
      break;
    }
  } while (!line.queue->broken() && line.queue->enable_kicks());
  line.queue->interrupt_if_needed();
  count_now();
  drop_if_broken(index);
}

void GpuWork::serve_control(Chain chain) {
  ++x_shared.counters.commands;
  Request request{.chain = chain};
  request.size = chain.copy_from_readable(0, request.bytes);
  virtio_gpu_ctrl_hdr& header = request.header;
  if (!request.as(header) || chain.writable_bytes() < sizeof header) {
    // Nothing to answer, or nowhere.
    ++x_shared.counters.refused;
    LETHE_LOG_LIMITED(LogModule::kGui, "gpu: a request of {} bytes, with room for {}", request.size,
                      chain.writable_bytes());
    return chain.complete(0);
  }
  const Command what = command(header.type);
  Response response;
  response.edid = {};  // the largest one: all of it is zero
  response.size = what.response_size;
  uint32_t answer = VIRTIO_GPU_RESP_ERR_UNSPEC;
  x_poll_wanted = false;
  // Looked at first, so that a command is done and answered, or neither.
  if (what.handler != nullptr && (what.needs & ~x_features) == 0 &&
      chain.writable_bytes() >= what.response_size)
    answer = (this->*what.handler)(request, response);
  if (answer >= VIRTIO_GPU_RESP_ERR_UNSPEC) {
    ++x_shared.counters.refused;
    response.size = sizeof header;
    log_debug(LogModule::kGui, "gpu: command {:#x}: {:#x}", header.type, answer);
  }
  // 5.7.6.7: fence, context and ring are the request's.
  response.header = {};
  response.header.type = answer;
  response.header.ctx_id = header.ctx_id;
  if ((header.flags & VIRTIO_GPU_FLAG_FENCE) != 0) {
    response.header.flags = header.flags & (VIRTIO_GPU_FLAG_FENCE | VIRTIO_GPU_FLAG_INFO_RING_IDX);
    response.header.fence_id = header.fence_id;
    response.header.ring_idx = header.ring_idx;
  }
  if (x_poll_wanted)
    if (Context* const context = find_context(header.ctx_id))
      return hold_poll(*context, std::move(chain), response.header);
  // SAFETY: `size` bytes of the union were written, or are zero.
  const std::span<const uint8_t> bytes{reinterpret_cast<const uint8_t*>(&response.header),
                                       response.size};
  chain.complete(static_cast<uint32_t>(chain.copy_to_writable(0, bytes)));
}

void GpuWork::serve_cursor(Chain chain) {
  ++x_shared.counters.commands;
  virtio_gpu_update_cursor request{};
  const bool known =
      chain.copy_front(request) && (request.hdr.type == VIRTIO_GPU_CMD_UPDATE_CURSOR ||
                                    request.hdr.type == VIRTIO_GPU_CMD_MOVE_CURSOR);
  if (!known || !x_screens.update_cursor(request)) {
    ++x_shared.counters.refused;
    LETHE_LOG_LIMITED(LogModule::kGui, "gpu: a cursor command was refused");
  }
  chain.complete(0);  // the cursor queue has no answers (5.7.6.10)
}

void GpuWork::count_now() {
  x_shared.counters.bytes_copied.store(x_resources.copied(), std::memory_order_relaxed);
  x_shared.counters.resources.store(x_resources.count(), std::memory_order_relaxed);
  x_shared.counters.contexts.store(x_contexts.size(), std::memory_order_relaxed);
  x_shared.counters.mappings.store(x_resources.window().mappings(), std::memory_order_relaxed);
}

}  // namespace lethe
