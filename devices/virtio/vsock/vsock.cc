#include "devices/virtio/vsock/vsock.h"

#include <array>
#include <cstring>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr uint64_t kFeatureStream = 1;  // bit 0: VIRTIO_VSOCK_F_STREAM (5.10.3), not in UAPI
constexpr std::array<uint16_t, kVsockQueues> kQueueSizes = {256, 256, 16};

}  // namespace

Result<std::unique_ptr<VsockDevice>> VsockDevice::create(const VsockIoOptions& options) {
  LETHE_ASSERT(options.cid >= kVsockCidMin && options.cid <= kVsockCidMax);
  std::unique_ptr<VsockDevice> device(new VsockDevice(options.cid));
  Result<> result;
  device->x_thread.run_and_wait([&] {
    device->x_io = std::make_unique<VsockIo>(device->x_thread.loop(), options, device->x_counters);
    result = device->x_io->watch();
  });
  LETHE_TRY(std::move(result));
  return Result<std::unique_ptr<VsockDevice>>(std::move(device));
}

VsockDevice::VsockDevice(uint32_t cid) : x_config{.guest_cid = cid} {}

VsockDevice::~VsockDevice() {
  x_thread.run_and_wait([this] { x_io.reset(); });
}

uint64_t VsockDevice::device_features() const { return kFeatureStream; }

std::span<const uint16_t> VsockDevice::queue_sizes_max() const { return kQueueSizes; }

void VsockDevice::read_config(uint32_t offset, std::span<uint8_t> to) {
  // SAFETY: the transport has clipped the range to the structure.
  std::memcpy(to.data(), reinterpret_cast<const uint8_t*>(&x_config) + offset, to.size());
}

void VsockDevice::start(uint64_t, VirtioHost& host) {
  x_thread.run_and_wait([&] { x_io->start(host); });
}

void VsockDevice::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  x_thread.run_and_wait([&] { x_io->start_queue(index, std::move(queue), kick); });
}

void VsockDevice::stop_queue(uint16_t index) {
  x_thread.run_and_wait([&] { x_io->stop_queue(index); });
}

void VsockDevice::reset() {
  x_thread.run_and_wait([this] { x_io->stop_all(); });
}

Result<> VsockDevice::restore(StateReader& from) {
  x_thread.run_and_wait([this] { x_io->restored(); });
  return from.check();
}

}  // namespace lethe
