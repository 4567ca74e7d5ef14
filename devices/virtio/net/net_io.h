// The I/O thread's side of a network device: its pairs of queues, its control queue, the ports, the
// link and the rate limits.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "base/event_loop.h"
#include "base/mutex.h"
#include "devices/virtio/net/net_control.h"
#include "devices/virtio/net/net_pair.h"
#include "devices/virtio/spinner.h"

namespace lethe {

using NetPorts = std::vector<std::unique_ptr<NetPort>>;

// Per second and direction; 0: no limit.
struct NetLimits {
  uint64_t bandwidth_max = 0;  // bytes
  uint64_t packets_max = 0;
  bool operator==(const NetLimits&) const = default;
};

// The configuration space (virtio 1.2, 5.1.4). Any thread.
class NetConfigSpace {
 public:
  static constexpr uint32_t kBytes = offsetof(virtio_net_config, speed);

  NetConfigSpace(const MacAddress& mac, uint16_t pairs, uint16_t mtu);
  void read(uint32_t offset, std::span<uint8_t> to) const;
  [[nodiscard]] MacAddress mac() const;
  void set_mac(const MacAddress& mac);
  // True if that changed something.
  bool set_status(uint16_t bits, bool on);
  [[nodiscard]] bool link_up() const;

 private:
  mutable Mutex x_mutex;
  virtio_net_config x_config LETHE_GUARDED_BY(x_mutex){};
};

// Threading: everything on `loop`'s thread.
class NetIo final : private NetCommands {
 public:
  struct Options {
    MacAddress mac;  // which a reset gives back
    uint16_t pairs = 1;
    uint32_t mtu = 1500;
    NetLimits limits;
    bool link = true;
    // The other end is gone, and with it the link. On this thread.
    std::function<void()> on_lost;
  };
  NetIo(EventLoop& loop, Options options, NetConfigSpace& config, NetCounters& counters);
  ~NetIo() override;
  // Once, before everything else. Fails if the host is out of descriptors.
  [[nodiscard]] Result<> open();

  // One port for each pair, or none.
  void set_ports(NetPorts ports);
  void set_link(bool up);
  [[nodiscard]] bool link_wanted() const { return x_link_wanted.load(); }  // any thread
  void set_limits(const NetLimits& limits);
  [[nodiscard]] const NetLimits& limits() const { return x_limits; }

  void start(uint64_t features, VirtioHost& host);
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick);
  void stop_queue(uint16_t index);
  void stop_all();

  void save(StateWriter& to) const;
  [[nodiscard]] Result<> restore(StateReader& from);

 private:
  struct Kick {
    const EventFd* event = nullptr;
    std::unique_ptr<EventLoop::Watch> watch;
  };
  struct Slot {
    explicit Slot(NetShared& shared) : pair(shared) {}
    NetPair pair;
    Spinner spinner{std::chrono::microseconds{20}};
    bool watched = false;
    uint32_t interest = 0;  // epoll's events
  };

  // NetCommands
  void set_mac(const MacAddress& mac) override;
  void set_pairs(uint16_t pairs) override;
  void set_guest_offloads(uint64_t features) override;
  void announced() override;

  void on_ports_ready();
  void on_kick(uint16_t index);
  void run_all();
  void run(size_t slot, bool send, bool receive);
  struct Turns {
    bool rest = true;  // nothing more to do until a kick, the port, or the timer wakes us
    bool worked = false;
    bool throttled = false;
  };
  Turns take_turns(NetPair& pair, bool send, bool receive);
  void note_turn(NetPair::Turn turn, Turns& turns);
  void update_interest(size_t slot);
  void tell_ports();
  void update_link();
  void lose_ports();
  void serve_control();

  EventLoop& x_loop;
  const Options x_options;
  NetConfigSpace& x_config;
  NetCounters& x_counters;
  NetShared x_shared;
  NetLimits x_limits;
  std::atomic<bool> x_link_wanted;
  NetPorts x_ports;
  std::vector<std::unique_ptr<Slot>> x_slots;
  std::vector<Kick> x_kicks;  // by queue
  std::unique_ptr<Queue> x_control;
  uint16_t x_control_index = 0;
  uint16_t x_active_pairs = 1;
  uint64_t x_guest_offloads = 0;

  // One level of epoll below the loop's: what is waited for changes with every full ring, and this
  // is the cheap way to change it.
  UniqueFd x_epoll;
  std::unique_ptr<EventLoop::Watch> x_epoll_watch;
  std::unique_ptr<EventFd> x_again;  // more to do, after the loop's other work
  std::unique_ptr<EventLoop::Watch> x_again_watch;
  std::unique_ptr<EventLoop::Timer> x_timer;  // of the rate limits
  bool x_timer_runs = false;
};

}  // namespace lethe
