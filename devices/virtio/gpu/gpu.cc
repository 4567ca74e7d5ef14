#include "devices/virtio/gpu/gpu.h"

#include <bit>
#include <cstddef>
#include <cstring>

#include "base/assert.h"
#include "devices/virtio/gpu/gpu_work.h"

namespace lethe {
namespace {

// Linux sends the pages of a backing in a descriptor a page of entries: room for 1 GiB in 4 KiB
// pages, in one chain.
constexpr std::array<uint16_t, 2> kQueueSizes = {1024, 64};
static_assert((kQueueSizes[0] - 2) * kPageBytes / sizeof(virtio_gpu_mem_entry) * kPageBytes >=
              gui::kBufferBytesMax - 4 * kMiB);

}  // namespace

Result<std::unique_ptr<GpuDevice>> GpuDevice::create(const GuestMemory& memory, Gui& gui,
                                                     const GpuOptions& options,
                                                     ScreenInput* input) {
  LETHE_ASSERT(options.screens > 0 && options.screens <= gui::kOutputsMax);
  static_assert(gui::kOutputsMax <= VIRTIO_GPU_MAX_SCANOUTS);
  LETHE_TRY_ASSIGN(auto window, HostWindow::create(options.window_memory));
  std::unique_ptr<GpuDevice> device(new GpuDevice(gui, options, std::move(window)));
  Result<> opened;
  gui.run_and_wait([&] {
    device->x_work =
        std::make_unique<GpuWork>(memory, gui, *device->x_window, input, *device->x_shared);
    opened = device->x_work->open(options);
  });
  LETHE_TRY(opened);
  return device;
}

GpuDevice::GpuDevice(Gui& gui, const GpuOptions& options, std::unique_ptr<HostWindow> window)
    : x_gui(gui),
      x_options(options),
      x_window(std::move(window)),
      x_shared(std::make_shared<GpuShared>()) {}

GpuDevice::~GpuDevice() {
  x_gui.run_and_wait([this] { x_work.reset(); });
}

uint64_t GpuDevice::device_features() const {
  // Linux makes contexts, and so blobs of the host's, only for who offers VIRGL.
  return gpu_bit(VIRTIO_GPU_F_VIRGL) | gpu_bit(VIRTIO_GPU_F_EDID) |
         gpu_bit(VIRTIO_GPU_F_RESOURCE_BLOB) | gpu_bit(VIRTIO_GPU_F_CONTEXT_INIT);
}

std::span<const uint16_t> GpuDevice::queue_sizes_max() const { return kQueueSizes; }

std::optional<VirtioSharedMemory> GpuDevice::shared_memory() const {
  return VirtioSharedMemory{
      .id = VIRTIO_GPU_SHM_ID_HOST_VISIBLE, .bytes = x_window->bytes(), .host = x_window->data()};
}

// --- configuration (5.7.4); vCPU threads

void GpuDevice::read_config(uint32_t offset, std::span<uint8_t> to) {
  virtio_gpu_config config{};
  config.events_read = x_shared->events.load();
  config.num_scanouts = x_options.screens;
  config.num_capsets = 1;
  // SAFETY: the transport has clipped the range to the structure.
  std::memcpy(to.data(), reinterpret_cast<const uint8_t*>(&config) + offset, to.size());
}

void GpuDevice::write_config(uint32_t offset, std::span<const uint8_t> from) {
  uint32_t value = 0;
  if (from.size() != sizeof value || offset != offsetof(virtio_gpu_config, events_clear)) return;
  std::memcpy(&value, from.data(), sizeof value);
  const uint32_t before = x_shared->events.fetch_and(~value);
  // One message at a time, however often the guest writes.
  if ((before & value) == 0 || x_shared->clear_posted.exchange(true)) return;
  x_gui.loop().post([shared = x_shared] {
    shared->clear_posted.store(false);
    if (GpuWork* const work = shared->work.load()) work->events_cleared();
  });
}

// --- the transport's calls

void GpuDevice::start(uint64_t features, VirtioHost& host) {
  x_gui.run_and_wait([&] { x_work->start(features, host); });
}

void GpuDevice::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  x_gui.run_and_wait([&] { x_work->start_queue(index, std::move(queue), kick); });
}

void GpuDevice::stop_queue(uint16_t index) {
  x_gui.run_and_wait([&] { x_work->stop_queue(index); });
}

void GpuDevice::reset() {
  x_gui.run_and_wait([&] { x_work->reset(); });
}

void GpuDevice::freeze() {
  x_gui.run_and_wait([&] { x_work->freeze(); });
}

void GpuDevice::save(StateWriter& to) {
  x_gui.run_and_wait([&] { x_work->save(to); });
}

Result<> GpuDevice::restore(StateReader& from) {
  x_gui.run_and_wait([&] { x_work->restore(from); });
  return from.check();
}

const GpuCounters& GpuDevice::counters() const { return x_shared->counters; }

void GpuDevice::report_metrics(MetricSink& sink) const {
  const auto value = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  const GpuCounters& counters = x_shared->counters;
  sink.counter("lethe_gui_gpu_commands_total", "Commands of the guest's to virtio-gpu.",
               value(counters.commands));
  sink.counter("lethe_gui_gpu_refused_total", "Those that were refused.", value(counters.refused));
  sink.counter("lethe_gui_gpu_flushes_total", "Resources flushed to screens.",
               value(counters.flushes));
  sink.counter("lethe_gui_gpu_copied_bytes_total", "Pixels copied out of guest memory.",
               value(counters.bytes_copied));
  const auto now = [&](const char* name, const char* help, const std::atomic<uint64_t>& counter) {
    sink.gauge(name, help, static_cast<double>(value(counter)));
  };
  now("lethe_gui_gpu_resources", "Resources of the guest's.", counters.resources);
  now("lethe_gui_gpu_contexts", "Contexts of the guest's.", counters.contexts);
  now("lethe_gui_gpu_mappings", "Blobs that the guest maps.", counters.mappings);
}

}  // namespace lethe
