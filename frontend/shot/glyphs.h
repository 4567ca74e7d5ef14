// Reads the text of a console in a picture: cells of a bitmap font (PSF), each of two colours.
//
// A Linux text console (fbcon) draws with the kernel's 8x16 VGA font, which Debian has as
// Lat15-VGA16.psf.gz, from the top left corner on. Glyphs are matched exactly: a cell with a third
// colour or an unknown shape (a cursor) is read as U+FFFD. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "frontend/picture.h"

namespace lethe::gui {

class Font {
 public:
  // A PSF 1 or 2 file, gzipped or not. Errors (kConfig): missing, no such file, larger than
  // 64x64 a glyph or 1 MiB.
  [[nodiscard]] static Result<Font> load(const std::string& path);
  [[nodiscard]] static Result<Font> parse(const std::vector<uint8_t>& bytes);

  [[nodiscard]] uint32_t width() const { return x_width; }
  [[nodiscard]] uint32_t height() const { return x_height; }
  // A glyph's rows, each of (width + 7) / 8 bytes, the leftmost pixel in the highest bit; to its
  // character. UTF-8; nothing if no glyph looks so.
  [[nodiscard]] const std::string* character(const std::string& bitmap) const;
  // The bitmap of a character, for tests; null if the font has none.
  [[nodiscard]] const std::string* bitmap(const std::string& character) const;

 private:
  void add(const std::string& bitmap, char32_t character);
  uint32_t x_width = 0;
  uint32_t x_height = 0;
  std::unordered_map<std::string, std::string> x_characters;  // by bitmap
  std::unordered_map<std::string, std::string> x_bitmaps;     // by character
};

inline constexpr const char* kDefaultFont = "/usr/share/consolefonts/Lat15-VGA16.psf.gz";

// One string a line of cells, without spaces at its end.
[[nodiscard]] std::vector<std::string> read_text(const Picture& picture, const Font& font);

// Whether a line has `text` in it.
[[nodiscard]] bool has_text(const std::vector<std::string>& lines, const std::string& text);

}  // namespace lethe::gui
