// virtio-vsock: stream sockets between guest and host (virtio 1.2, 5.10), which are Unix sockets on
// the host, in the way Firecracker documents. docs/vsock.md is for users.
//
// A client of the host's connects to the listener, writes "CONNECT PORT\n" and is answered
// "OK HOSTPORT\n" when the guest has accepted; or its connection is closed. What the guest connects
// to port P of CID 2 goes to the Unix socket that listens on PATH_P; nobody there: RST.
//
// Limits: VsockLimits, and kVsockBufferBytes a stream.
#pragma once

#include <memory>

#include "base/event_loop.h"
#include "devices/virtio/device.h"
#include "devices/virtio/vsock/vsock_io.h"

namespace lethe {

inline constexpr uint64_t kVsockCidMin = 3;            // 5.10.4
inline constexpr uint64_t kVsockCidMax = 0xffff'fffe;  // the last 32-bit number is VMADDR_CID_ANY
inline constexpr size_t kVsockPortDigits = 11;         // "_4294967295", behind the listener's path

// Threading: owns one I/O thread, on which all queues and sockets live. Transport calls, on vCPU
// threads, wait for that thread, which never waits for a vCPU, nor for a socket. Create and destroy
// on any one thread.
class VsockDevice : public VirtioDevice {
 public:
  // Fails when the process is out of descriptors. The listener must outlive the device.
  [[nodiscard]] static Result<std::unique_ptr<VsockDevice>> create(const VsockIoOptions& options);
  ~VsockDevice() override;

  [[nodiscard]] uint16_t virtio_id() const override { return VIRTIO_ID_VSOCK; }
  [[nodiscard]] const char* name() const override { return "vsock"; }
  [[nodiscard]] uint64_t device_features() const override;
  [[nodiscard]] std::span<const uint16_t> queue_sizes_max() const override;
  [[nodiscard]] uint32_t config_size() const override { return sizeof(virtio_vsock_config); }
  void read_config(uint32_t offset, std::span<uint8_t> to) override;
  void write_config(uint32_t, std::span<const uint8_t>) override {}  // nothing in it is writable
  void start(uint64_t features, VirtioHost& host) override;
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) override;
  void stop_queue(uint16_t index) override;
  void reset() override;
  // Streams outlive a pause, and no restore: there is nothing to save, and the restored guest is
  // told (5.10.6.7.1). Its listening sockets stay. It may have another CID then, which it reads.
  [[nodiscard]] Result<> restore(StateReader& from) override;

  [[nodiscard]] const VsockCounters& counters() const { return x_counters; }

 private:
  explicit VsockDevice(uint32_t cid);

  const virtio_vsock_config x_config;
  VsockCounters x_counters;
  std::unique_ptr<VsockIo> x_io;  // the thread's
  IoThread x_thread{"vsock"};
};

}  // namespace lethe
