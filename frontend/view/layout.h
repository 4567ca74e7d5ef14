// Where a guest's picture stands in a host window, and back. Any thread.
#pragma once

#include <cstdint>

#include "frontend/client.h"

namespace lethe::gui {

enum class Scale : uint8_t {
  kFit,      // as large as the window allows, its sides in proportion
  kInteger,  // by a whole number, if the window is as large as the picture
};

struct Placement {
  int x = 0, y = 0, width = 0, height = 0;  // in the window, pixels
  bool whole = true;                        // each pixel of the guest is a square of whole pixels
};

[[nodiscard]] Placement place(int window_width, int window_height, uint32_t width, uint32_t height,
                              Scale scale);

struct Point {
  int x = 0, y = 0;
};
// A place in the window to a pixel of the picture; beside it, the nearest.
[[nodiscard]] Point to_picture(const Placement& placement, Point window, uint32_t width,
                               uint32_t height);

}  // namespace lethe::gui
