// The event ring of a context (window_protocol.h): memory of the guest's that the host writes and
// never reads. What the guest has read comes only from its polls.
//
// Keys, buttons, wheel, focus and closing are written as they come, and lost (counted) when the
// ring is full. What is state (a pointer's place, a wanted size, a serial that was read, buffers
// that are free) is kept here and merged while the ring is half full, and written when the guest
// has read on.
//
// Threading: the gui thread. The guest reads the ring at any time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "base/state.h"
#include "devices/virtio/gpu/window_protocol.h"

namespace lethe {

class EventRing {
 public:
  static constexpr uint32_t kEventsMin = 16;
  // Numbers of released resources that wait for room; more are lost.
  static constexpr size_t kReleasedMax = 16384;

  // `data`: `bytes` of memory, 4-byte aligned, that stay until stop(). False if they are too few.
  bool start(uint8_t* data, uint64_t bytes);
  void stop();
  // Snapshots: all but the memory. restore(): after start().
  void save(StateWriter& to) const;
  void restore(StateReader& from);
  [[nodiscard]] bool active() const { return x_data != nullptr; }

  // Nothing happens while it is not active.
  void push(const window::Event& event);
  void motion(uint32_t window, uint32_t x, uint32_t y);
  void configure(uint32_t window, int32_t x, int32_t y, uint32_t width, uint32_t height);
  void done(uint32_t window, uint32_t serial);
  void released(uint32_t resource);
  // What waits for the window is of no interest any more.
  void forget_window(uint32_t window);

  // The guest has read all events before number `tail`. False if they are not there, or it had read
  // further before.
  bool set_tail(uint32_t tail);
  [[nodiscard]] bool unread() const { return x_head != x_tail; }
  [[nodiscard]] uint32_t lost() const { return x_lost; }

 private:
  struct Waiting {  // of one window
    uint32_t window = 0;
    bool has_motion = false;
    bool has_configure = false;
    bool has_done = false;
    window::Event motion{};
    window::Event configure{};
    window::Event done{};
  };
  [[nodiscard]] uint32_t used() const { return x_head - x_tail; }
  // Whether state is to be written at once.
  [[nodiscard]] bool roomy() const {
    return used() < x_capacity / 2 && x_waiting.empty() && x_released.empty();
  }
  Waiting& waiting(uint32_t window);
  bool write(const window::Event& event);
  void lose();
  void write_waiting();

  uint8_t* x_data = nullptr;
  uint32_t x_capacity = 0;
  uint32_t x_head = 0;
  uint32_t x_tail = 0;
  uint32_t x_lost = 0;
  std::vector<Waiting> x_waiting;  // at most one a window
  std::deque<uint32_t> x_released;
};

}  // namespace lethe
