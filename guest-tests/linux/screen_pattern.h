// What screen_painter (in the guest) and vnc_probe (outside) agree on: a key typed in the guest
// makes it paint a rectangle in one colour, which tells how many have been painted before.
#pragma once

#include <linux/input-event-codes.h>

#include <cstdint>

namespace lethe::screen_pattern {

inline constexpr uint32_t kWidth = 1024;  // of the screen, pixels
inline constexpr uint32_t kHeight = 768;
inline constexpr const char* kReady = "screen_painter: ready";  // all is painted with colour(0)

struct Damage {
  const char* name;
  uint16_t key;     // evdev code
  uint32_t keysym;  // X11's (and so VNC's) name of it
  uint32_t x, y, width, height;
};
inline constexpr Damage kDamages[] = {
    {"small", KEY_S, 's', 480, 352, 64, 64},
    {"medium", KEY_M, 'm', 256, 192, 512, 384},
    {"full", KEY_F, 'f', 0, 0, kWidth, kHeight},
};
// This key starts an animation: kAnimationFrames of kAnimationDamage, one every kAnimationPeriodMs,
// or as many as the guest can.
inline constexpr uint16_t kAnimationKey = KEY_A;
inline constexpr uint32_t kAnimationKeysym = 'a';
inline constexpr uint32_t kAnimationFrames = 60;
inline constexpr uint32_t kAnimationPeriodMs = 20;
inline constexpr const Damage& kAnimationDamage = kDamages[1];

// X8R8G8B8 of the frame with this number; no two of less than 2^24 are the same.
constexpr uint32_t colour(uint32_t number) {
  return (number * 0x9E37'79B1u + 0x20'4060u) & 0xFF'FFFF;
}

}  // namespace lethe::screen_pattern
