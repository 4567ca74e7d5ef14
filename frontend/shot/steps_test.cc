#include "frontend/shot/steps.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>

namespace lethe::gui {
namespace {

void expect_error(const std::string& json, const std::string& why) {
  const auto steps = parse_steps(json, "dir");
  ASSERT_FALSE(steps) << json;
  EXPECT_EQ(steps.error().kind, ErrorClass::kConfig);
  EXPECT_NE(steps.error().text.find(why), std::string::npos) << steps.error().text;
}

TEST(Steps, parses_every_kind) {
  const auto steps = parse_steps(R"({"steps": [
    {"wait_image": "a.png", "tolerance": 8, "max_different": 0.25, "masks": [[1, 2, 3, 4]],
     "surface": "screen:1", "timeout_ms": 500},
    {"wait_text": "login:", "surface": "window:xterm: 1"},
    {"type": "root\n"},
    {"keys": ["KEY_LEFTCTRL+KEY_C", "ENTER"]},
    {"click": [10, 20], "button": "right"},
    {"shot": "b.png"},
    {"resize": [640, 480]}, {"close": true, "surface": "window:a"}, {"wait_gone": true}]})",
                                 "dir");
  ASSERT_TRUE(steps) << steps.error().text;
  ASSERT_EQ(steps->size(), 9U);
  EXPECT_EQ(std::get<Resize>((*steps)[6].action).height, 480U);
  EXPECT_TRUE(std::holds_alternative<CloseSurface>((*steps)[7].action));
  EXPECT_TRUE(std::holds_alternative<WaitGone>((*steps)[8].action));
  const auto& image = std::get<WaitImage>((*steps)[0].action);
  EXPECT_EQ(image.path, "dir/a.png");
  EXPECT_EQ(image.rules.tolerance, 8U);
  EXPECT_EQ(image.rules.max_different, 0.25);
  ASSERT_EQ(image.rules.masks.size(), 1U);
  EXPECT_EQ(image.rules.masks[0], (Rect{1, 2, 3, 4}));
  EXPECT_EQ((*steps)[0].surface.text(), "screen:1");
  EXPECT_EQ((*steps)[0].timeout.count(), 500);
  EXPECT_EQ((*steps)[1].surface.text(), "window:xterm: 1");
  EXPECT_EQ((*steps)[1].timeout, kStepTimeout);
  EXPECT_EQ((*steps)[2].surface.text(), "screen:0");
  const auto& keys = std::get<PressKeys>((*steps)[3].action);
  EXPECT_EQ(keys.chords, (std::vector<std::vector<uint32_t>>{{KEY_LEFTCTRL, KEY_C}, {KEY_ENTER}}));
  EXPECT_EQ(std::get<Click>((*steps)[4].action).button, static_cast<uint32_t>(BTN_RIGHT));
}

TEST(Steps, refuses_what_is_wrong_and_names_the_step) {
  expect_error("{", "no JSON");
  expect_error("[]", "must be {\"steps\"");
  expect_error(R"({"steps": [], "more": 1})", "must be {\"steps\"");
  expect_error(R"({"steps": [{"type": "a"}, 1]})", "step 2: it is no object");
  expect_error(R"({"steps": [{}]})", "step 1: it has none of");
  expect_error(R"({"steps": [{"type": "a", "tolerance": 1}]})", "a member that this kind");
  expect_error(R"({"steps": [{"type": "\u00e4"}]})", "no key for the byte 0xc3");
  expect_error(R"({"steps": [{"keys": ["KEY_NO"]}]})", "'KEY_NO' is no key");
  expect_error(R"({"steps": [{"keys": "KEY_A"}]})", "array of strings");
  expect_error(R"({"steps": [{"resize": [0, 5]}]})", "0 is no size");
  expect_error(R"({"steps": [{"close": 1}]})", "\"close\" must be true");
  expect_error(R"({"steps": [{"wait_gone": false}]})", "\"wait_gone\" must be true");
  expect_error(R"({"steps": [{"keys": ["KEY_A+"]}]})", "'' is no key");
  expect_error(R"({"steps": [{"click": [1]}]})", "2 whole numbers");
  expect_error(R"({"steps": [{"click": [1, -1]}]})", "2 whole numbers");
  expect_error(R"({"steps": [{"click": [1, 2], "button": "top"}]})", "left, middle or right");
  expect_error(R"({"steps": [{"wait_image": 1}]})", "must be a string");
  expect_error(R"({"steps": [{"wait_image": "a", "tolerance": 256}]})", "0 to 255");
  expect_error(R"({"steps": [{"wait_image": "a", "max_different": -1}]})", "0 to 1");
  expect_error(R"({"steps": [{"wait_image": "a", "masks": [[1]]}]})", "4 whole numbers");
  expect_error(R"({"steps": [{"wait_text": "a", "surface": "screen"}]})", "screen:N");
  expect_error(R"({"steps": [{"wait_text": "a", "surface": "screen:16"}]})", "screen:N");
  expect_error(R"({"steps": [{"wait_text": "a", "timeout_ms": "1"}]})", "must be a number");
}

}  // namespace
}  // namespace lethe::gui
