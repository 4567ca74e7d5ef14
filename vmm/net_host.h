// The host's ends of a VM's network cards: taps, sockets, passt's processes. It opens them, gives
// them to the devices, and again when one was lost.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "base/event_loop.h"
#include "devices/virtio/net/net.h"
#include "vmm/config.h"
#include "vmm/passt.h"

namespace lethe {

// Threading: the main thread, which runs `loop`. It must outlive the devices that it makes.
class NetHost {
 public:
  // A link that went away or came back by itself: the card's number, and one line.
  using LinkListener = std::function<void(size_t index, bool up, const std::string& why)>;

  // Opens the ends of all cards; passt's are started and not waited for. Errors (kHost) name the
  // card and the way out. `config` and `loop` must outlive this.
  [[nodiscard]] static Result<std::unique_ptr<NetHost>> create(const VmConfig& config,
                                                               EventLoop& loop);
  ~NetHost();

  [[nodiscard]] size_t count() const { return x_cards.size(); }
  // The device of a card; once each.
  [[nodiscard]] Result<std::unique_ptr<NetDevice>> make_device(size_t index);
  void set_listener(LinkListener listener) { x_listener = std::move(listener); }
  // Of a card with `user`, while it runs; else -1. For tests.
  [[nodiscard]] pid_t passt_pid(size_t index) const;

 private:
  struct Card {
    size_t index = 0;
    const NetConfig* config = nullptr;
    NetPorts ports;  // until the device has them
    NetDevice* device = nullptr;
    std::unique_ptr<Passt> passt;
    std::chrono::steady_clock::time_point opened;
    std::chrono::milliseconds patience{};  // before the next try
    std::unique_ptr<EventLoop::Timer> timer;
    uint64_t attempts = 0;
  };

  NetHost(const VmConfig& config, EventLoop& loop) : x_config(config), x_loop(loop) {}
  Result<NetPorts> open(Card& card);
  void lost(Card& card);
  void try_again(Card& card);

  const VmConfig& x_config;
  EventLoop& x_loop;
  LinkListener x_listener;
  std::vector<std::unique_ptr<Card>> x_cards;
  std::shared_ptr<bool> x_alive = std::make_shared<bool>(true);
};

}  // namespace lethe
