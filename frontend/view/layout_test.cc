#include "frontend/view/layout.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>

#include <SDL2/SDL_scancode.h>

#include "frontend/view/scancodes.h"

namespace lethe::gui {
namespace {

void expect(const Placement& placement, int x, int y, int width, int height, bool whole) {
  EXPECT_EQ(placement.x, x);
  EXPECT_EQ(placement.y, y);
  EXPECT_EQ(placement.width, width);
  EXPECT_EQ(placement.height, height);
  EXPECT_EQ(placement.whole, whole);
}

TEST(Layout, fills_a_window_of_the_pictures_size) {
  expect(place(640, 480, 640, 480, Scale::kFit), 0, 0, 640, 480, true);
  expect(place(1280, 960, 640, 480, Scale::kFit), 0, 0, 1280, 960, true);
}

TEST(Layout, fit_keeps_the_proportions) {
  expect(place(1000, 480, 640, 480, Scale::kFit), 180, 0, 640, 480, false);
  expect(place(640, 1000, 640, 480, Scale::kFit), 0, 260, 640, 480, false);
  expect(place(320, 480, 640, 480, Scale::kFit), 0, 120, 320, 240, false);
}

TEST(Layout, integer_scales_by_whole_numbers_or_fits_when_too_small) {
  expect(place(1900, 1000, 640, 480, Scale::kInteger), 310, 20, 1280, 960, true);
  expect(place(320, 480, 640, 480, Scale::kInteger), 0, 120, 320, 240, false);
}

TEST(Layout, extremes_neither_overflow_nor_divide_by_zero) {
  expect(place(1, 16384, 16384, 1, Scale::kFit), 0, 8191, 1, 1, false);
  expect(place(0, 0, 640, 480, Scale::kFit), 0, 0, 0, 0, true);
  (void)place(2147483647, 1, 16384, 16384, Scale::kFit);
}

TEST(Layout, pointers_land_on_the_pixel_they_show) {
  const Placement twice = place(1900, 1000, 640, 480, Scale::kInteger);
  const auto at = [&](int x, int y) { return to_picture(twice, {x, y}, 640, 480); };
  EXPECT_EQ(at(310, 20).x, 0);
  EXPECT_EQ(at(311, 21).y, 0);
  EXPECT_EQ(at(312, 20).x, 1);
  EXPECT_EQ(at(0, 0).x, 0);
  EXPECT_EQ(at(1899, 999).x, 639);
  EXPECT_EQ(at(1899, 999).y, 479);
}

TEST(Scancodes, are_places_on_the_keyboard) {
  EXPECT_EQ(evdev_of_scancode(SDL_SCANCODE_A), KEY_A);
  EXPECT_EQ(evdev_of_scancode(SDL_SCANCODE_0), KEY_0);
  EXPECT_EQ(evdev_of_scancode(SDL_SCANCODE_KP_ENTER), KEY_KPENTER);
  EXPECT_EQ(evdev_of_scancode(SDL_SCANCODE_RALT), KEY_RIGHTALT);
  EXPECT_EQ(evdev_of_scancode(SDL_SCANCODE_NONUSBACKSLASH), KEY_102ND);
  EXPECT_FALSE(evdev_of_scancode(0));
  EXPECT_FALSE(evdev_of_scancode(-1));
  EXPECT_FALSE(evdev_of_scancode(100000));
}

}  // namespace
}  // namespace lethe::gui
