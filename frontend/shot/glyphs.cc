#include "frontend/shot/glyphs.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <span>

namespace lethe::gui {
namespace {

constexpr size_t kFileBytesMax = 1 << 20;
constexpr uint32_t kSideMax = 64;
constexpr uint32_t kGlyphsMax = 65536;
constexpr const char* kUnknown = "\xEF\xBF\xBD";  // U+FFFD

// The kernel's own VGA font (lib/fonts/font_8x16.c), which a guest has until its distribution loads
// another one, draws five characters of ASCII in another way than Debian's Lat15-VGA16.
struct Variant {
  char character;
  std::array<uint8_t, 16> rows;
};
constexpr std::array kKernelVariants = {
    Variant{'\'', {0, 0x30, 0x30, 0x30, 0x60}},
    Variant{'`', {0, 0x30, 0x18, 0x0C}},
    Variant{'f', {0, 0, 0x1C, 0x36, 0x32, 0x30, 0x78, 0x30, 0x30, 0x30, 0x30, 0x78}},
    Variant{'v', {0, 0, 0, 0, 0, 0xC6, 0xC6, 0xC6, 0xC6, 0xC6, 0x6C, 0x38}},
    Variant{'~', {0, 0x76, 0xDC}},
};

std::string utf8(char32_t c) {
  std::string out;
  const auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | (c >> 18 & 7));
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
  return out;
}

Result<std::vector<uint8_t>> read_file(const std::string& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file)
    return config_error(
        "cannot read the font '{}': {}; install console-setup-linux, or give another --font", path,
        errno_text(errno));
  std::vector<uint8_t> bytes(kFileBytesMax + 1);
  const int got = gzread(file.get(), bytes.data(), static_cast<unsigned>(bytes.size()));
  if (got < 0) return config_error("cannot read the font '{}'", path);
  if (static_cast<size_t>(got) > kFileBytesMax) return config_error("'{}' is no font", path);
  bytes.resize(static_cast<size_t>(got));
  return bytes;
}

// The two layouts (kbd's psf.h): what glyphs there are, and the table of their characters.
struct Layout {
  uint32_t glyphs = 0, width = 8, height = 0;
  size_t glyph_bytes = 0;
  size_t first = 0;  // offset of the first glyph
  bool table = false;
  bool utf8_table = false;  // PSF 2; else 16 bits a character
};

uint32_t word_at(std::span<const uint8_t> bytes, size_t at) {
  return static_cast<uint32_t>(bytes[at] | bytes[at + 1] << 8 | bytes[at + 2] << 16) |
         static_cast<uint32_t>(bytes[at + 3]) << 24;
}

std::optional<Layout> layout_of(std::span<const uint8_t> bytes) {
  Layout layout;
  if (bytes.size() >= 4 && bytes[0] == 0x36 && bytes[1] == 0x04) {
    layout.glyphs = (bytes[2] & 1) != 0 ? 512 : 256;
    layout.height = bytes[3];
    layout.glyph_bytes = layout.height;
    layout.first = 4;
    layout.table = (bytes[2] & 6) != 0;
  } else if (bytes.size() >= 32 && word_at(bytes, 0) == 0x864AB572) {
    layout.first = word_at(bytes, 8);
    layout.table = (word_at(bytes, 12) & 1) != 0;
    layout.glyphs = word_at(bytes, 16);
    layout.glyph_bytes = word_at(bytes, 20);
    layout.height = word_at(bytes, 24);
    layout.width = word_at(bytes, 28);
    layout.utf8_table = true;
  } else {
    return std::nullopt;
  }
  const bool fits = layout.width >= 1 && layout.width <= kSideMax && layout.height >= 1 &&
                    layout.height <= kSideMax && layout.glyphs >= 1 &&
                    layout.glyphs <= kGlyphsMax &&
                    layout.glyph_bytes == size_t{layout.height} * ((layout.width + 7) / 8) &&
                    layout.first <= bytes.size() &&
                    layout.glyphs * layout.glyph_bytes <= bytes.size() - layout.first;
  return fits ? std::optional(layout) : std::nullopt;
}

// Goes through the table of characters: each glyph's, up to an end mark; sequences are skipped.
class TableReader {
 public:
  TableReader(std::span<const uint8_t> bytes, bool utf8) : x_bytes(bytes), x_utf8(utf8) {}

  std::vector<char32_t> next() {
    std::vector<char32_t> characters;
    bool sequence = false;
    while (const auto c = take()) {
      if (*c == kEnd) break;
      if (*c == kSequence) sequence = true;
      if (!sequence) characters.push_back(*c);
    }
    return characters;
  }

 private:
  static constexpr char32_t kEnd = 0xFFFF'FFFF, kSequence = 0xFFFF'FFFE;

  std::optional<char32_t> take() { return x_utf8 ? take_utf8() : take_word(); }
  std::optional<char32_t> take_word() {
    if (x_at + 2 > x_bytes.size()) return std::nullopt;
    const char32_t word = static_cast<char32_t>(x_bytes[x_at] | x_bytes[x_at + 1] << 8);
    x_at += 2;
    return word == 0xFFFF ? kEnd : word == 0xFFFE ? kSequence : word;
  }
  std::optional<char32_t> take_utf8() {
    if (x_at >= x_bytes.size()) return std::nullopt;
    const uint8_t first = x_bytes[x_at++];
    if (first == 0xFF) return kEnd;
    if (first == 0xFE) return kSequence;
    const int more = first < 0xC0 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    char32_t c = more == 0 ? first : first & (0x3FU >> more);
    for (int i = 0; i < more && x_at < x_bytes.size(); ++i) c = c << 6 | (x_bytes[x_at++] & 0x3F);
    return c;
  }

  std::span<const uint8_t> x_bytes;
  bool x_utf8;
  size_t x_at = 0;
};

// A cell's pixels as a glyph: which have another colour than the first one. Nothing if there is a
// third colour.
std::optional<std::string> cell_bitmap(const Picture& picture, uint32_t x, uint32_t y,
                                       uint32_t width, uint32_t height) {
  const Pixel first = picture.at(x, y);
  std::optional<Pixel> second;
  const uint32_t row_bytes = (width + 7) / 8;
  std::string bitmap(size_t{row_bytes} * height, '\0');
  for (uint32_t row = 0; row < height; ++row) {
    const Pixel* line = picture.line(y + row) + x;
    for (uint32_t column = 0; column < width; ++column) {
      if (line[column] == first) continue;
      if (!second) second = line[column];
      if (line[column] != *second) return std::nullopt;
      char& byte = bitmap[size_t{row} * row_bytes + column / 8];
      byte = static_cast<char>(byte | 0x80 >> column % 8);
    }
  }
  return bitmap;
}

void invert(std::string& bitmap, uint32_t width) {
  const uint32_t row_bytes = (width + 7) / 8;
  for (size_t i = 0; i < bitmap.size(); ++i) {
    const uint32_t used = std::min(8U, width - 8 * static_cast<uint32_t>(i % row_bytes));
    bitmap[i] = static_cast<char>(bitmap[i] ^ (0xFF00 >> used & 0xFF));
  }
}

std::string read_cell(const Picture& picture, const Font& font, uint32_t x, uint32_t y) {
  auto bitmap = cell_bitmap(picture, x, y, font.width(), font.height());
  if (!bitmap) return kUnknown;
  // One colour: a space, and not a full block.
  if (bitmap->find_first_not_of('\0') == std::string::npos) return " ";
  const std::string* plain = font.character(*bitmap);
  invert(*bitmap, font.width());
  const std::string* inverse = font.character(*bitmap);
  if (plain != nullptr && (plain->size() == 1 || inverse == nullptr)) return *plain;
  return inverse != nullptr ? *inverse : kUnknown;
}

}  // namespace

void Font::add(const std::string& bitmap, char32_t character) {
  const std::string text = utf8(character);
  x_bitmaps.try_emplace(text, bitmap);
  // Several characters may look the same: printable ASCII goes first.
  const bool ascii = character >= 0x20 && character < 0x7F;
  const auto [known, fresh] = x_characters.try_emplace(bitmap, text);
  if (!fresh && ascii) known->second = text;
}

Result<Font> Font::load(const std::string& path) {
  LETHE_TRY_ASSIGN(const std::vector<uint8_t> bytes, read_file(path));
  auto font = parse(bytes);
  if (!font) return config_error("'{}': {}", path, font.error().text);
  return font;
}

Result<Font> Font::parse(const std::vector<uint8_t>& bytes) {
  const std::optional<Layout> layout = layout_of(bytes);
  if (!layout) return config_error("it is no PSF font of at most {0}x{0}", kSideMax);
  Font font;
  font.x_width = layout->width;
  font.x_height = layout->height;
  const size_t table = layout->first + layout->glyphs * layout->glyph_bytes;
  TableReader reader(std::span(bytes).subspan(table), layout->utf8_table);
  for (uint32_t i = 0; i < layout->glyphs; ++i) {
    // SAFETY: bytes seen as characters; layout_of() checked that all glyphs lie in the file.
    const std::string bitmap(
        reinterpret_cast<const char*>(bytes.data()) + layout->first + i * layout->glyph_bytes,
        layout->glyph_bytes);
    if (!layout->table) font.add(bitmap, i);
    if (layout->table)
      for (const char32_t character : reader.next()) font.add(bitmap, character);
  }
  if (font.x_width == 8 && font.x_height == 16)
    for (const Variant& variant : kKernelVariants)
      font.add({variant.rows.begin(), variant.rows.end()},
               static_cast<unsigned char>(variant.character));
  return font;
}

const std::string* Font::character(const std::string& bitmap) const {
  const auto found = x_characters.find(bitmap);
  return found == x_characters.end() ? nullptr : &found->second;
}
const std::string* Font::bitmap(const std::string& character) const {
  const auto found = x_bitmaps.find(character);
  return found == x_bitmaps.end() ? nullptr : &found->second;
}

std::vector<std::string> read_text(const Picture& picture, const Font& font) {
  std::vector<std::string> lines;
  for (uint32_t y = 0; y + font.height() <= picture.height; y += font.height()) {
    std::string line;
    for (uint32_t x = 0; x + font.width() <= picture.width; x += font.width())
      line += read_cell(picture, font, x, y);
    line.resize(line.find_last_not_of(' ') + 1);
    lines.push_back(std::move(line));
  }
  return lines;
}

bool has_text(const std::vector<std::string>& lines, const std::string& text) {
  return std::any_of(lines.begin(), lines.end(),
                     [&](const std::string& line) { return line.find(text) != std::string::npos; });
}

}  // namespace lethe::gui
