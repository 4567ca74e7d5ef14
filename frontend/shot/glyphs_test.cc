#include "frontend/shot/glyphs.h"

#include <gtest/gtest.h>

#include "frontend/shot/draw_text.h"

namespace lethe::gui {
namespace {

// A PSF 1 font of 256 glyphs of 8x4: the glyph of code c has the bits of c in its second row, and
// code 7 looks as code 'A'. Its table gives each glyph its own code, and 'A' the Greek Alpha, too.
std::vector<uint8_t> small_font() {
  std::vector<uint8_t> bytes = {0x36, 0x04, 2, 4};
  for (int c = 0; c < 256; ++c) {
    const int looks = c == 7 ? 'A' : c == ' ' ? 0 : c;
    bytes.insert(bytes.end(), {0, static_cast<uint8_t>(looks), 0x80, 0});
  }
  for (int c = 0; c < 256; ++c) {
    bytes.insert(bytes.end(), {static_cast<uint8_t>(c), 0});
    if (c == 'A') bytes.insert(bytes.end(), {0x91, 0x03});
    bytes.insert(bytes.end(), {0xFF, 0xFF});
  }
  return bytes;
}

Font font() {
  auto font = Font::parse(small_font());
  EXPECT_TRUE(font) << font.error().text;
  return std::move(*font);
}

TEST(Glyphs, reads_what_was_drawn_in_any_two_colours) {
  const Font f = font();
  Picture picture(8 * 12, 4 * 3);
  draw_text(picture, f, 0, 0, "login: root", 0xAAAAAA, 0);
  draw_text(picture, f, 3, 1, "warning", 0, 0xFF5500);  // inverse
  const auto lines = read_text(picture, f);
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_EQ(lines[0], "login: root");
  EXPECT_EQ(lines[1], "   warning");
  EXPECT_EQ(lines[2], "");
  EXPECT_TRUE(has_text(lines, "n: ro"));
  EXPECT_FALSE(has_text(lines, "rootwarning"));
}

TEST(Glyphs, reads_unknown_shapes_and_third_colours_as_unknown) {
  const Font f = font();
  Picture picture(8 * 3, 4);
  draw_text(picture, f, 0, 0, "abc", 0xFFFFFF, 0);
  picture.line(3)[0] = 0xFFFFFF;  // no glyph looks so
  picture.line(3)[8] = 0x123456;  // a third colour
  EXPECT_EQ(read_text(picture, f)[0],
            "\xEF\xBF\xBD\xEF\xBF\xBD"
            "c");
}

TEST(Glyphs, reads_one_colour_as_a_space) {
  const Font f = font();
  Picture picture(8 * 3, 4);
  std::fill(picture.pixels.begin(), picture.pixels.end(), 0x00FF00);
  EXPECT_EQ(read_text(picture, f)[0], "");
}

TEST(Glyphs, prefers_ascii_among_characters_that_look_the_same) {
  const Font f = font();
  Picture picture(8, 4);
  draw_text(picture, f, 0, 0, "A", 1, 0);
  EXPECT_EQ(read_text(picture, f)[0], "A");
  EXPECT_NE(f.bitmap("\xCE\x91"), nullptr);
}

TEST(Glyphs, leaves_out_what_is_no_whole_cell) {
  const Font f = font();
  const auto lines = read_text(Picture(8 * 2 + 7, 4 * 2 + 3), f);
  EXPECT_EQ(lines.size(), 2U);
  EXPECT_TRUE(read_text(Picture(7, 3), f).empty());
}

TEST(Glyphs, reads_the_kernels_console_with_debians_font) {
  auto vga = Font::load(kDefaultFont);
  ASSERT_TRUE(vga) << vga.error().text;
  EXPECT_EQ(vga->width(), 8U);
  EXPECT_EQ(vga->height(), 16U);
  std::string all;
  for (char c = ' '; c <= '~'; ++c) all += c;
  Picture picture(8 * 128, 16 * 2);
  draw_text(picture, *vga, 0, 0, all + "x", 0xAAAAAA, 0);
  EXPECT_EQ(read_text(picture, *vga)[0], all + "x");
  // The kernel's 'f', which is not Debian's.
  const std::string f("\0\0\x1C\x36\x32\x30\x78\x30\x30\x30\x30\x78\0\0\0\0", 16);
  ASSERT_NE(vga->character(f), nullptr);
  EXPECT_EQ(*vga->character(f), "f");
}

TEST(Glyphs, refuses_fonts_that_lie_about_their_size) {
  std::vector<uint8_t> bytes = small_font();
  bytes.resize(4 + 256 * 4 - 1);
  EXPECT_FALSE(Font::parse(bytes));
  EXPECT_FALSE(Font::parse({}));
  EXPECT_FALSE(Font::parse({0x36, 0x04, 0, 0}));
  std::vector<uint8_t> two(32);
  two[0] = 0x72, two[1] = 0xB5, two[2] = 0x4A, two[3] = 0x86;
  two[8] = 32, two[16] = 0xFF, two[17] = 0xFF, two[20] = 4, two[24] = 4, two[28] = 8;
  EXPECT_FALSE(Font::parse(two));
  EXPECT_FALSE(Font::load("/nonexistent"));
}

TEST(Glyphs, reads_psf_2_with_wide_glyphs) {
  // Two glyphs of 12x2, 'x' and 'y'.
  std::vector<uint8_t> bytes(32);
  bytes[0] = 0x72, bytes[1] = 0xB5, bytes[2] = 0x4A, bytes[3] = 0x86;
  bytes[8] = 32, bytes[12] = 1, bytes[16] = 2, bytes[20] = 4, bytes[24] = 2, bytes[28] = 12;
  bytes.insert(bytes.end(), {0x00, 0x10, 0x01, 0x00, 0x40, 0x00, 0x00, 0x20});
  bytes.insert(bytes.end(), {'x', 0xFF, 'y', 0xFE, 'z', 0xFF});
  const auto wide = Font::parse(bytes);
  ASSERT_TRUE(wide) << wide.error().text;
  Picture picture(12 * 3, 2);
  draw_text(picture, *wide, 0, 0, "xyx", 0xFFFFFF, 0);
  EXPECT_EQ(read_text(picture, *wide)[0], "xyx");
}

}  // namespace
}  // namespace lethe::gui
