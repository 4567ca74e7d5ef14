// virtio-rng, the entropy device (virtio 1.2, 5.4).
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "base/event_loop.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "devices/virtio/device.h"
#include "devices/virtio/kick_watch.h"

namespace lethe {

struct RngCounters {  // any thread
  std::atomic<uint64_t> bytes{0};
  std::atomic<uint64_t> refused{0};       // requests without a writable buffer
  std::atomic<uint64_t> source_short{0};  // times the kernel stepped in for the source
};

// Threading: queues are served on `loop` (the main loop); transport calls on vCPU threads take the
// device's lock and wait for nothing else. Destroyed on the loop's thread or when it does not run.
class RngDevice : public VirtioDevice {
 public:
  static constexpr size_t kRequestBytesMax = 64 * 1024;  // the rest of a larger buffer stays unused
  static constexpr size_t kWakeBytesMax = 256 * 1024;    // then the loop's other work has its turn

  // `source`: a file to read from, "/dev/urandom" or empty for the kernel's getrandom(2). When a
  // file has nothing to give (it ended, failed, or would block), getrandom(2) fills the request.
  // Fails when it can't be opened; the error names it.
  [[nodiscard]] static Result<std::unique_ptr<RngDevice>> open(EventLoop& loop,
                                                               const std::string& source);
  ~RngDevice() override;

  [[nodiscard]] uint16_t virtio_id() const override { return VIRTIO_ID_RNG; }
  [[nodiscard]] const char* name() const override { return "rng"; }
  [[nodiscard]] uint64_t device_features() const override { return 0; }
  [[nodiscard]] std::span<const uint16_t> queue_sizes_max() const override;
  [[nodiscard]] uint32_t config_size() const override { return 0; }
  void read_config(uint32_t, std::span<uint8_t>) override {}
  void write_config(uint32_t, std::span<const uint8_t>) override {}
  void start(uint64_t features, VirtioHost& host) override;
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) override;
  void stop_queue(uint16_t index) override;
  void reset() override;

  [[nodiscard]] const RngCounters& counters() const { return x_counters; }

 private:
  RngDevice(EventLoop& loop, UniqueFd source) : x_loop(loop), x_source(std::move(source)) {}
  void serve();
  uint32_t fill(const Chain& chain);
  void fill_bytes(std::span<uint8_t> to);

  EventLoop& x_loop;
  UniqueFd x_source;  // none: getrandom
  RngCounters x_counters;
  Mutex x_mutex;
  VirtioHost* x_host LETHE_GUARDED_BY(x_mutex) = nullptr;
  std::unique_ptr<Queue> x_queue LETHE_GUARDED_BY(x_mutex);
  const EventFd* x_kick LETHE_GUARDED_BY(x_mutex) = nullptr;  // valid while there is a queue
  std::unique_ptr<KickWatch> x_kick_watch LETHE_GUARDED_BY(x_mutex);
};

}  // namespace lethe
