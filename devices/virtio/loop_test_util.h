// For tests of devices that live on the main loop: a loop that runs on a thread of its own.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "base/event_loop.h"

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

// Whether `condition` came true within `patience`.
template <typename Condition>
bool eventually(Condition&& condition,
                std::chrono::milliseconds patience = std::chrono::milliseconds(10'000)) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace lethe
