// For tests: the guest's side of virtio-vsock over FakeTransport, packet by packet; and one that
// keeps the rules of a stream, credit too.
#pragma once

#include <linux/virtio_vsock.h>

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "devices/virtio/fake_transport.h"
#include "devices/virtio/vsock/vsock.h"

namespace lethe {

struct FakeVsockPacket {
  virtio_vsock_hdr header{};
  std::string payload;
};

class FakeVsockDriver {
 public:
  static constexpr uint32_t kCid = 3;
  static constexpr uint32_t kHeader = sizeof(virtio_vsock_hdr);
  struct Options {
    uint16_t queue_size = 64;
    uint16_t rx_buffers = 32;        // the driver keeps so many available
    uint32_t rx_bytes = 4096;        // payload of each, as in Linux
    bool rx_split = false;           // in many descriptors, the header over three of them
    uint32_t buf_alloc = 64 * 1024;  // what headers say by default
  };

  FakeVsockDriver(const GuestMemory& memory, VirtioDevice& device, Options options);
  FakeVsockDriver(const GuestMemory& memory, VirtioDevice& device)
      : FakeVsockDriver(memory, device, Options{}) {}

  [[nodiscard]] FakeTransport& transport() { return x_transport; }
  // Starts the device; buffers for packets and events are given.
  void start();
  void reset();  // packets that were not looked at are lost
  void refill();
  // After all queues were stopped: they come back empty, and get their buffers.
  void restart_queues();
  void give_event_buffer(uint32_t bytes = sizeof(virtio_vsock_event));
  [[nodiscard]] std::optional<uint32_t> wait_event(
      std::chrono::milliseconds patience = FakeTransport::kPatience);

  // A header to the host: from the guest's port to the host's.
  [[nodiscard]] virtio_vsock_hdr header(uint16_t op, VsockPorts ports) const;
  // Sends it, and waits until the device has taken it; false after the deadline. header.len is what
  // it says; `payload` lies behind it, in descriptors of its own.
  bool send(const virtio_vsock_hdr& header, std::string_view payload = {},
            std::chrono::milliseconds patience = FakeTransport::kPatience);
  bool send(uint16_t op, VsockPorts ports, uint32_t flags = 0);
  bool send_data(VsockPorts ports, std::string_view payload);
  // Any bytes, in descriptors of these sizes. Not waited for if `patience` is 0.
  bool send_raw(std::span<const uint8_t> bytes, std::span<const uint32_t> sizes,
                std::chrono::milliseconds patience = FakeTransport::kPatience);

  // The next packet for the guest; nothing after the deadline.
  [[nodiscard]] std::optional<FakeVsockPacket> receive(
      std::chrono::milliseconds patience = FakeTransport::kPatience);
  // The next one that is no credit update or request.
  [[nodiscard]] std::optional<FakeVsockPacket> receive_content(
      std::chrono::milliseconds patience = FakeTransport::kPatience);
  // Receives until the device has answered to a packet that must come after all before: so nothing
  // else is on its way. Returns what came before that.
  [[nodiscard]] std::vector<FakeVsockPacket> drain();
  [[nodiscard]] uint16_t rx_given() const { return x_rx_given; }
  // No more buffers are given until the next refill().
  void hold_rx() { x_rx_held = true; }

 private:
  struct RxBuffer {
    GuestAddr address;
    std::vector<FakeBuffer> pieces;
  };
  void take_used(uint16_t head, uint32_t written);
  void give_all();

  const GuestMemory& x_memory;
  const Options x_options;
  FakeTransport x_transport;
  std::vector<RxBuffer> x_rx;
  std::vector<size_t> x_rx_free;
  std::map<uint16_t, size_t> x_rx_by_head;
  uint16_t x_rx_given = 0;
  bool x_rx_held = false;
  std::deque<FakeVsockPacket> x_received;
  GuestAddr x_tx;
  GuestAddr x_event;
};

}  // namespace lethe
