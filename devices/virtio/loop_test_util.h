// For tests of devices that live on the main loop: a loop that runs on a thread of its own.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "base/event_loop.h"
#include "base/test_util.h"

namespace lethe {

// Owns a device and destroys it on the loop's thread, as the contract asks.
template <typename Device>
class OnLoop {
 public:
  // `make` runs on the loop's thread: std::unique_ptr<Device>(EventLoop&).
  template <typename Make>
  explicit OnLoop(Make&& make) {
    x_thread.run_and_wait([&] { x_device = make(x_thread.loop()); });
  }
  ~OnLoop() {
    x_thread.run_and_wait([this] { x_device.reset(); });
  }
  Device& operator*() { return *x_device; }
  Device* operator->() { return x_device.get(); }
  // On the loop's thread, and waits.
  void run(std::function<void()> work) { x_thread.run_and_wait(std::move(work)); }

 private:
  IoThread x_thread{"test-loop"};
  std::unique_ptr<Device> x_device;
};

}  // namespace lethe
