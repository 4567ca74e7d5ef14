// virtio-gpu (virtio 1.2, 5.7): screens of a stock guest, by copies (2D) or without (blobs), and
// windows without a copy by the window capset (window_protocol.h). docs/gui.md explains it.
//
//   auto gpu = GpuDevice::create(memory, gui, options, &input_devices);
//   VirtioPciTransport::create(environment, std::move(*gpu));
//
// Threading: everything lives on the gui thread (Gui), queues too. Transport calls, on vCPU
// threads, wait for it; it never waits for a vCPU.
#pragma once

#include <linux/virtio_gpu.h>

#include <array>
#include <atomic>
#include <memory>

#include "base/metrics.h"
#include "devices/gui/gui.h"
#include "devices/virtio/device.h"
#include "devices/virtio/gpu/host_window.h"
#include "devices/virtio/input/screen_input.h"
#include "memory/guest_memory.h"

namespace lethe {

struct GpuOptions {
  uint32_t screens = 1;  // 1 to gui::kOutputsMax
  uint32_t width = 1280;
  uint32_t height = 800;
  uint64_t window_memory = uint64_t{512} << 20;  // bytes of the BAR, a power of two
};

// What the guest did, and did wrong. The gui thread writes, any thread reads.
struct GpuCounters {
  std::atomic<uint64_t> commands{0};      // answered, both queues
  std::atomic<uint64_t> refused{0};       // with an error, or too broken to be answered
  std::atomic<uint64_t> flushes{0};       // of resources
  std::atomic<uint64_t> bytes_copied{0};  // of pixels, out of guest memory
  std::atomic<uint64_t> resources{0};     // now
  std::atomic<uint64_t> contexts{0};      // now
  std::atomic<uint64_t> mappings{0};      // now: blobs in the BAR
};

class GpuWork;
struct GpuShared;

class GpuDevice final : public VirtioDevice {
 public:
  static constexpr uint16_t kControlQueue = 0;
  static constexpr uint16_t kCursorQueue = 1;

  // `memory`, `gui` and `input` (may be null) must outlive the device. Its screens are there from
  // now on. Fails when the options or the host don't allow it. Not on the gui thread.
  [[nodiscard]] static Result<std::unique_ptr<GpuDevice>> create(const GuestMemory& memory,
                                                                 Gui& gui,
                                                                 const GpuOptions& options,
                                                                 ScreenInput* input);
  ~GpuDevice() override;

  [[nodiscard]] uint16_t virtio_id() const override { return VIRTIO_ID_GPU; }
  [[nodiscard]] const char* name() const override { return "gpu"; }
  [[nodiscard]] uint64_t device_features() const override;
  [[nodiscard]] std::span<const uint16_t> queue_sizes_max() const override;
  [[nodiscard]] std::optional<VirtioSharedMemory> shared_memory() const override;
  [[nodiscard]] uint32_t config_size() const override { return sizeof(virtio_gpu_config); }
  void read_config(uint32_t offset, std::span<uint8_t> to) override;
  void write_config(uint32_t offset, std::span<const uint8_t> from) override;
  void start(uint64_t features, VirtioHost& host) override;
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) override;
  void stop_queue(uint16_t index) override;
  void reset() override;
  // Everything the guest has made, with its content; not what it wrote into the region where no
  // blob is mapped.
  void freeze() override;
  void save(StateWriter& to) override;
  [[nodiscard]] Result<> restore(StateReader& from) override;

  [[nodiscard]] const GpuCounters& counters() const;
  void report_metrics(MetricSink& sink) const;  // any thread

 private:
  GpuDevice(Gui& gui, const GpuOptions& options, std::unique_ptr<HostWindow> window);

  Gui& x_gui;
  const GpuOptions x_options;
  const std::unique_ptr<HostWindow> x_window;  // mappings: the gui thread's
  const std::shared_ptr<GpuShared> x_shared;
  std::unique_ptr<GpuWork> x_work;  // the gui thread's
};

}  // namespace lethe
