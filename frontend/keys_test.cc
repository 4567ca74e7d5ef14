#include "frontend/keys.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>

#include <set>

namespace lethe::gui {
namespace {

TEST(Keys, types_every_printable_character_with_a_stroke_of_its_own) {
  std::set<std::pair<uint32_t, bool>> strokes;
  for (char32_t c = ' '; c <= '~'; ++c) {
    const auto stroke = us_key(c);
    ASSERT_TRUE(stroke) << static_cast<int>(c);
    EXPECT_TRUE(strokes.insert({stroke->code, stroke->shift}).second) << static_cast<int>(c);
  }
  EXPECT_EQ(us_key('z')->code, static_cast<uint32_t>(KEY_Z));
  EXPECT_EQ(us_key('/')->code, static_cast<uint32_t>(KEY_SLASH));
  EXPECT_EQ(us_key('~')->code, static_cast<uint32_t>(KEY_GRAVE));
  EXPECT_TRUE(us_key('~')->shift);
  EXPECT_EQ(us_key('|')->code, static_cast<uint32_t>(KEY_BACKSLASH));
  EXPECT_EQ(us_key('\n')->code, static_cast<uint32_t>(KEY_ENTER));
  EXPECT_EQ(us_key('\t')->code, static_cast<uint32_t>(KEY_TAB));
  EXPECT_EQ(us_key('\b')->code, static_cast<uint32_t>(KEY_BACKSPACE));
}

TEST(Keys, has_no_key_for_what_no_us_keyboard_types) {
  EXPECT_FALSE(us_key(0));
  EXPECT_FALSE(us_key(0xE4));
  EXPECT_FALSE(us_key(0x7F));
}

TEST(Keys, finds_keys_by_their_evdev_name) {
  EXPECT_EQ(key_by_name("KEY_LEFTCTRL"), KEY_LEFTCTRL);
  EXPECT_EQ(key_by_name("F12"), KEY_F12);
  EXPECT_EQ(key_by_name("KEY_KPENTER"), KEY_KPENTER);
  EXPECT_FALSE(key_by_name("KEY_NOSUCH"));
  EXPECT_FALSE(key_by_name(""));
}

}  // namespace
}  // namespace lethe::gui
