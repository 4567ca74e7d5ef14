// The events an input device has for its driver, in order, while the driver has no buffers for
// them. Bounded; no key's or button's press is ever taken without room for its release.
//
// Room: kFramesMax frames. A press is taken while there is room for it and for the releases of all
// that is down then, each with a motion before it; a release is always taken. So a guest that stops
// reading costs presses only after 1000 strokes or more that it has not read, and what was pressed
// for it is released. Motions in a row are one (the last); a motion without room waits aside, and
// comes before the next release, or when there is room. Notches of the wheel without room are lost.
//
// One thread, or the caller's lock. No allocation after construction.
#pragma once

#include <linux/virtio_input.h>

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "base/state.h"
#include "devices/virtio/input/input_config.h"

namespace lethe {

class InputBacklog {
 public:
  static constexpr size_t kFramesMax = 4096;
  static_assert(kFramesMax > 2 * kInputCodes + 2, "room for all releases");

  enum class Taken : uint8_t {
    kNew,
    kMerged,  // a motion, into the one before it
    kSame,    // the key is (not) down already: nothing changes
    kFull,
  };

  InputBacklog();

  // `code` is below kInputCodes.
  Taken edge(uint32_t code, bool down);
  Taken motion(uint32_t x, uint32_t y);
  // Notches, not both 0.
  Taken wheel(int32_t vertical, int32_t horizontal);

  [[nodiscard]] bool empty() const { return x_size == 0 && x_sent == x_count; }
  [[nodiscard]] size_t frames() const { return x_size; }  // not begun
  // The next event; a frame's last one is SYN_REPORT. Not if empty().
  [[nodiscard]] virtio_input_event take();
  // Snapshots. restore(): into a new one; events may be any, keys those that `has` says there are.
  void save(StateWriter& to) const;
  void restore(StateReader& from, const std::function<bool(uint32_t code)>& has);
  // What is down and not to be released by anybody: those keys go up.
  void release_all();
  // Forgets everything; no key is down.
  void clear();

 private:
  struct Frame {
    enum class Kind : uint8_t { kEdge, kMotion, kWheel };
    Kind kind = Kind::kEdge;
    bool down = false;
    uint16_t code = 0;
    int32_t x = 0;  // of a wheel: vertical
    int32_t y = 0;
  };
  [[nodiscard]] bool room(size_t frames, size_t down) const;
  void push(const Frame& frame);
  void settle();
  void open(const Frame& frame);
  void add_event(uint16_t type, uint16_t code, int32_t value);

  const std::unique_ptr<std::array<Frame, kFramesMax>> x_frames;  // a ring
  size_t x_start = 0;
  size_t x_size = 0;
  std::optional<Frame> x_aside;     // a motion there was no room for, newer than all in the ring
  std::bitset<kInputCodes> x_down;  // after everything in the ring
  size_t x_down_count = 0;
  // The frame being sent, taken apart.
  std::array<virtio_input_event, 5> x_events{};
  size_t x_count = 0;
  size_t x_sent = 0;
};

}  // namespace lethe
