// What a screen's keys and pointer become: virtio-gpu hands them on to whatever the machine has
// (the virtio-input devices; tests have a fake).
#pragma once

#include <cstdint>

namespace lethe {

// Threading: the gui thread.
class ScreenInput {
 public:
  virtual ~ScreenInput() = default;
  virtual void key(uint32_t code, bool down) = 0;  // evdev KEY_*
  // The pointer's place in the guest's desktop, 0 to kPointerMax across its width and height.
  static constexpr uint32_t kPointerMax = 32767;
  virtual void motion(uint32_t x, uint32_t y) = 0;
  virtual void button(uint32_t code, bool down) = 0;  // evdev BTN_*
  virtual void wheel(int32_t vertical, int32_t horizontal) = 0;
};

}  // namespace lethe
