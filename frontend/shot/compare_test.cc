#include "frontend/shot/compare.h"

#include <gtest/gtest.h>

namespace lethe::gui {
namespace {

Picture grey(uint32_t width, uint32_t height) {
  Picture picture(width, height);
  std::fill(picture.pixels.begin(), picture.pixels.end(), 0x808080);
  return picture;
}

TEST(Compare, equal_pictures_match) {
  const Comparison result = compare(grey(10, 5), grey(10, 5), {});
  EXPECT_TRUE(result.matches);
  EXPECT_EQ(result.compared, 50U);
  EXPECT_EQ(result.different, 0U);
}

TEST(Compare, one_different_pixel_is_a_mismatch_with_its_place) {
  Picture actual = grey(10, 5);
  actual.line(3)[7] = 0x80FF80;
  const Comparison result = compare(actual, grey(10, 5), {});
  EXPECT_FALSE(result.matches);
  EXPECT_EQ(result.box, (Rect{7, 3, 1, 1}));
  EXPECT_EQ(result.largest, 127U);
  const std::string text = describe(result, actual, grey(10, 5), {});
  EXPECT_NE(text.find("1 of 50 pixels differ"), std::string::npos) << text;
  EXPECT_NE(text.find("1x1+7+3"), std::string::npos) << text;
}

TEST(Compare, tolerance_is_of_each_colour) {
  Picture actual = grey(10, 5);
  actual.line(0)[0] = 0x888078;
  EXPECT_TRUE(
      compare(actual, grey(10, 5), {.tolerance = 8, .max_different = 0, .masks = {}}).matches);
  EXPECT_FALSE(
      compare(actual, grey(10, 5), {.tolerance = 7, .max_different = 0, .masks = {}}).matches);
}

TEST(Compare, as_many_pixels_may_differ_as_is_allowed) {
  Picture actual = grey(10, 10);
  actual.line(0)[0] = actual.line(9)[9] = 0;
  const CompareRules two{.tolerance = 0, .max_different = 0.02, .masks = {}};
  EXPECT_TRUE(compare(actual, grey(10, 10), two).matches);
  EXPECT_EQ(compare(actual, grey(10, 10), two).box, (Rect{0, 0, 10, 10}));
  actual.line(5)[5] = 0;
  EXPECT_FALSE(compare(actual, grey(10, 10), two).matches);
}

TEST(Compare, masked_areas_do_not_count) {
  Picture actual = grey(10, 5);
  actual.line(2)[4] = 0;
  const CompareRules rules{.tolerance = 0, .max_different = 0, .masks = {{4, 2, 1, 1}}};
  const Comparison result = compare(actual, grey(10, 5), rules);
  EXPECT_TRUE(result.matches);
  EXPECT_EQ(result.compared, 49U);
  actual.line(2)[5] = 0;
  EXPECT_FALSE(compare(actual, grey(10, 5), rules).matches);
}

TEST(Compare, another_size_never_matches) {
  const CompareRules all{.tolerance = 255, .max_different = 1, .masks = {}};
  const Comparison result = compare(grey(10, 5), grey(5, 10), all);
  EXPECT_FALSE(result.matches);
  EXPECT_EQ(describe(result, grey(10, 5), grey(5, 10), all), "it is 10x5, expected 5x10");
}

TEST(Compare, the_difference_picture_shows_what_differs_and_what_is_masked) {
  Picture actual = grey(4, 1);
  actual.line(0)[1] = 0;
  const Picture out = difference_picture(
      actual, grey(5, 1), {.tolerance = 0, .max_different = 0, .masks = {{2, 0, 1, 1}}});
  EXPECT_EQ(out.width, 5U);
  EXPECT_EQ(out.at(0, 0), 0xE0E0E0U);
  EXPECT_EQ(out.at(1, 0), 0xFF0000U);
  EXPECT_EQ(out.at(2, 0), 0x8080FFU);
  EXPECT_EQ(out.at(4, 0), 0xFF0000U);
}

}  // namespace
}  // namespace lethe::gui
