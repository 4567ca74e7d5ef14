// virtio-net (virtio 1.2, 5.1).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "devices/virtio/device.h"
#include "devices/virtio/net/net_io.h"

namespace lethe {

inline constexpr uint16_t kNetPairsMax = 8;
inline constexpr uint32_t kNetMtuMin = 68;     // RFC 791
inline constexpr uint32_t kNetMtuMax = 65520;  // what passt takes; a multiple of 8

struct NetOptions {
  std::string name = "net0";  // for logs and the I/O thread: at most 15 characters
  MacAddress mac{};
  uint32_t mtu = 1500;        // kNetMtuMin to kNetMtuMax
  uint16_t pairs = 1;         // 1 to kNetPairsMax
  uint16_t queue_size = 256;  // a power of two, 4 to kQueueSizeMax
  bool link = true;
  NetLimits limits = {};
  uint64_t offloads = 0;  // of ports that come later, if there are none at first
  // The other end is gone: the link is down until connect(). Called on the device's thread; it must
  // not wait for the device.
  std::function<void()> on_lost = {};
};

// Threading: owns one I/O thread, on which all queues, their kicks and the ports live. Transport
// calls, on vCPU threads, wait for that thread, which never waits for a vCPU. Needs no other loop.
// Create and destroy on any one thread; what is said to be for the host, on that one too.
//
// A frame's bytes go straight between the guest's memory and the port's system call; small frames
// from a stream take one copy more (StreamPort). Frames that break a rule are dropped and counted:
// networks lose frames.
class NetDevice : public VirtioDevice {
 public:
  // `ports`: one for each pair of queues, or none yet. Fails (kHost) if the host is out of
  // descriptors; options out of range are a programmer error.
  [[nodiscard]] static Result<std::unique_ptr<NetDevice>> create(const NetOptions& options,
                                                                 NetPorts ports);
  ~NetDevice() override;

  [[nodiscard]] uint16_t virtio_id() const override { return VIRTIO_ID_NET; }
  [[nodiscard]] const char* name() const override { return x_name.c_str(); }
  [[nodiscard]] uint64_t device_features() const override { return x_features; }
  [[nodiscard]] std::span<const uint16_t> queue_sizes_max() const override { return x_queue_sizes; }
  [[nodiscard]] uint32_t config_size() const override { return NetConfigSpace::kBytes; }
  void read_config(uint32_t offset, std::span<uint8_t> to) override { x_config.read(offset, to); }
  void write_config(uint32_t, std::span<const uint8_t>) override {}  // nothing in it is writable
  void start(uint64_t features, VirtioHost& host) override;
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) override;
  void stop_queue(uint16_t index) override;
  void reset() override;
  void save(StateWriter& to) override;
  [[nodiscard]] Result<> restore(StateReader& from) override;

  // For the host. The other end is there (again): the link comes up, unless set_link() took it
  // down. Ports can no more than `offloads` and the first ones said.
  void connect(NetPorts ports);
  void set_link(bool up);
  void set_limits(const NetLimits& limits);
  [[nodiscard]] NetLimits limits();
  [[nodiscard]] bool link_wanted() const { return x_io->link_wanted(); }
  // Any thread.
  [[nodiscard]] bool link_up() const { return x_config.link_up(); }
  [[nodiscard]] MacAddress mac() const { return x_config.mac(); }
  [[nodiscard]] const NetCounters& counters() const { return x_counters; }

 private:
  NetDevice(const NetOptions& options, uint64_t offloads);

  const std::string x_name;
  const uint64_t x_features;
  std::vector<uint16_t> x_queue_sizes;
  NetConfigSpace x_config;
  NetCounters x_counters;
  std::unique_ptr<NetIo> x_io;  // the thread's
  IoThread x_thread;
};

}  // namespace lethe
