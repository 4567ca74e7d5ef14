// The host through virtio-gpu's render node: a context of the window capset, HOST3D blobs for the
// buffers, SUBMIT_3D for commands, and an event ring that a fence on ring 1 wakes us for.
//
// The uses of Linux's interface (include/uapi/drm/virtgpu_drm.h) follow
// drivers/gpu/drm/virtio/virtgpu_ioctl.c of Linux 6.1, the oldest kernel this runs on.
//
// Threading: one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "guest-tests/linux/agent/host.h"

namespace lethe::agent {

class DrmHost final : public Host {
 public:
  static constexpr uint64_t kEventRingBytes = 16384;

  // `device`: a path, or empty for the first render node of a virtio-gpu. Fails with a line that
  // says what is missing.
  [[nodiscard]] static Result<std::unique_ptr<DrmHost>> open(const std::string& device);

  [[nodiscard]] Result<std::unique_ptr<Buffer>> make_buffer(uint64_t bytes) override;
  [[nodiscard]] Result<> submit(std::span<const uint8_t> commands) override;
  [[nodiscard]] int event_fd() const override { return x_fd.get(); }
  [[nodiscard]] Result<> take_events(const EventHandler& handler) override;

  // Events that the ring had no room for, so far.
  [[nodiscard]] uint32_t lost_events() const;

 private:
  explicit DrmHost(UniqueFd fd) : x_fd(std::move(fd)) {}
  [[nodiscard]] Result<> init();
  [[nodiscard]] Result<> execute(const void* commands, size_t bytes, uint32_t flags, uint32_t ring);
  [[nodiscard]] Result<> wait_for_events();

  UniqueFd x_fd;  // must outlive x_ring
  std::unique_ptr<Buffer> x_ring;
  uint32_t x_tail = 0;  // events read so far
};

}  // namespace lethe::agent
