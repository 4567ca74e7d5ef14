#include "frontend/view/layout.h"

#include <algorithm>

namespace lethe::gui {

Placement place(int window_width, int window_height, uint32_t width, uint32_t height, Scale scale) {
  if (window_width < 1 || window_height < 1 || width == 0 || height == 0) return {};
  const int64_t w = width, h = height;
  const int64_t times = std::min(window_width / w, window_height / h);
  Placement placement;
  if (times >= 1 &&
      (scale == Scale::kInteger || (times * w == window_width && times * h == window_height))) {
    placement.width = static_cast<int>(times * w);
    placement.height = static_cast<int>(times * h);
  } else if (window_width * h <= window_height * w) {  // all 64 bits: no overflow
    placement.width = window_width;
    placement.height = static_cast<int>(std::max<int64_t>(1, window_width * h / w));
    placement.whole = false;
  } else {
    placement.width = static_cast<int>(std::max<int64_t>(1, window_height * w / h));
    placement.height = window_height;
    placement.whole = false;
  }
  placement.x = (window_width - placement.width) / 2;
  placement.y = (window_height - placement.height) / 2;
  return placement;
}

Point to_picture(const Placement& placement, Point window, uint32_t width, uint32_t height) {
  if (placement.width < 1 || placement.height < 1) return {};
  const auto along = [](int at, int start, int size, uint32_t pixels) {
    const int64_t inside = std::clamp(at - start, 0, size - 1);
    return static_cast<int>(inside * pixels / size);
  };
  return {along(window.x, placement.x, placement.width, width),
          along(window.y, placement.y, placement.height, height)};
}

}  // namespace lethe::gui
