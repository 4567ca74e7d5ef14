// Compares a picture with the one expected. Any thread.
#pragma once

#include <string>
#include <vector>

#include "frontend/picture.h"

namespace lethe::gui {

struct CompareRules {
  uint32_t tolerance = 0;    // of each colour, 0 to 255
  double max_different = 0;  // of the pixels that are not masked, 0 to 1
  std::vector<Rect> masks;   // areas that are not compared
};

struct Comparison {
  bool matches = false;
  bool same_size = false;
  uint64_t compared = 0;   // pixels
  uint64_t different = 0;  // of them
  uint32_t largest = 0;    // difference of one colour
  Rect box;                // around all that differ
};

[[nodiscard]] Comparison compare(const Picture& actual, const Picture& expected,
                                 const CompareRules& rules);

// "1234 of 786432 pixels differ (0.157 %, allowed 0.1 %), by up to 255, in 80x16+10+20"
[[nodiscard]] std::string describe(const Comparison& comparison, const Picture& actual,
                                   const Picture& expected, const CompareRules& rules);

// The actual picture, faint; what differs in red, what is masked in blue.
[[nodiscard]] Picture difference_picture(const Picture& actual, const Picture& expected,
                                         const CompareRules& rules);

}  // namespace lethe::gui
