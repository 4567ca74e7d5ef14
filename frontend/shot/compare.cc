#include "frontend/shot/compare.h"

#include <fmt/format.h>

#include <algorithm>

namespace lethe::gui {
namespace {

uint32_t largest_difference(Pixel a, Pixel b) {
  uint32_t largest = 0;
  for (int shift = 0; shift < 24; shift += 8) {
    const int one = static_cast<int>(a >> shift & 0xFF);
    const int other = static_cast<int>(b >> shift & 0xFF);
    largest = std::max(largest, static_cast<uint32_t>(std::abs(one - other)));
  }
  return largest;
}

bool inside(const Rect& rect, uint32_t x, uint32_t y) {
  return x >= rect.x && y >= rect.y && x - rect.x < rect.width && y - rect.y < rect.height;
}

bool masked(const CompareRules& rules, uint32_t x, uint32_t y) {
  return std::any_of(rules.masks.begin(), rules.masks.end(),
                     [&](const Rect& mask) { return inside(mask, x, y); });
}

Pixel faint(Pixel pixel) { return 0xC0C0C0 + (pixel >> 2 & 0x3F3F3F); }

}  // namespace

Comparison compare(const Picture& actual, const Picture& expected, const CompareRules& rules) {
  Comparison result;
  result.same_size = actual.width == expected.width && actual.height == expected.height;
  if (!result.same_size) return result;
  uint32_t left = actual.width, top = actual.height, right = 0, bottom = 0;
  for (uint32_t y = 0; y < actual.height; ++y) {
    for (uint32_t x = 0; x < actual.width; ++x) {
      if (!rules.masks.empty() && masked(rules, x, y)) continue;
      ++result.compared;
      const uint32_t by = largest_difference(actual.at(x, y), expected.at(x, y));
      if (by <= rules.tolerance) continue;
      ++result.different;
      result.largest = std::max(result.largest, by);
      left = std::min(left, x);
      right = std::max(right, x);
      top = std::min(top, y);
      bottom = y;
    }
  }
  if (result.different > 0) result.box = {left, top, right - left + 1, bottom - top + 1};
  result.matches = static_cast<double>(result.different) <=
                   rules.max_different * static_cast<double>(result.compared);
  return result;
}

std::string describe(const Comparison& comparison, const Picture& actual, const Picture& expected,
                     const CompareRules& rules) {
  if (!comparison.same_size)
    return fmt::format("it is {}x{}, expected {}x{}", actual.width, actual.height, expected.width,
                       expected.height);
  if (comparison.different == 0) return "no pixel differs";
  return fmt::format(
      "{} of {} pixels differ ({:.3f} %, allowed {:.3f} %), by up to {} (allowed {}), in "
      "{}x{}+{}+{}",
      comparison.different, comparison.compared,
      100.0 * static_cast<double>(comparison.different) / static_cast<double>(comparison.compared),
      100.0 * rules.max_different, comparison.largest, rules.tolerance, comparison.box.width,
      comparison.box.height, comparison.box.x, comparison.box.y);
}

Picture difference_picture(const Picture& actual, const Picture& expected,
                           const CompareRules& rules) {
  Picture out(std::max(actual.width, expected.width), std::max(actual.height, expected.height));
  for (uint32_t y = 0; y < out.height; ++y) {
    for (uint32_t x = 0; x < out.width; ++x) {
      const bool both =
          x < actual.width && y < actual.height && x < expected.width && y < expected.height;
      Pixel pixel = 0xFF0000;
      if (masked(rules, x, y))
        pixel = 0x8080FF;
      else if (both && largest_difference(actual.at(x, y), expected.at(x, y)) <= rules.tolerance)
        pixel = faint(actual.at(x, y));
      out.line(y)[x] = pixel;
    }
  }
  return out;
}

}  // namespace lethe::gui
