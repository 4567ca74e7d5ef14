#include "devices/gui/channel_message.h"

#include <linux/input-event-codes.h>

#include <algorithm>
#include <cstring>

namespace lethe {
namespace {

constexpr uint32_t kKeyMax = 0x2FF;
constexpr int32_t kNotchesMax = 100;

bool valid(const gui::Hello& m) {
  return m.magic == gui::kMagic && (m.flags & ~gui::kHelloViewOnly) == 0 && m.reserved == 0 &&
         std::memchr(m.name, 0, sizeof m.name) != nullptr;
}
bool valid(const gui::DoneReading& m) { return m.surface != 0; }
bool valid(const gui::Unmapped& m) {
  return m.buffer < gui::kBuffersMax && m.reserved == 0 && m.generation != 0;
}
bool valid(const gui::Key& m) {
  return m.surface != 0 && m.code >= 1 && m.code <= kKeyMax && m.down <= 1;
}
bool valid(const gui::Motion& m) { return m.surface != 0; }
bool valid(const gui::Button& m) {
  return m.surface != 0 && m.code >= BTN_LEFT && m.code <= BTN_TASK && m.down <= 1;
}
bool valid(const gui::Wheel& m) {
  const auto fits = [](int32_t notches) {
    return notches >= -kNotchesMax && notches <= kNotchesMax;
  };
  return m.surface != 0 && fits(m.vertical) && fits(m.horizontal);
}
bool valid(const gui::Focus& m) { return m.surface != 0 && m.focused <= 1 && m.reserved == 0; }
bool valid(const gui::Configure& m) {
  const auto fits = [](uint32_t side) { return side >= 1 && side <= gui::kSidePixelsMax; };
  return m.surface != 0 && fits(m.width) && fits(m.height);
}
bool valid(const gui::Close& m) { return m.surface != 0; }

template <typename Message>
std::optional<FrontendMessage> parse_as(std::span<const uint8_t> packet) {
  if (packet.size() != sizeof(Message)) return std::nullopt;
  Message message;
  std::memcpy(&message, packet.data(), sizeof message);
  if (message.header.size != sizeof message || !valid(message)) return std::nullopt;
  return message;
}

// Bytes of the character that `text` begins with; 0 if it is not UTF-8 (RFC 3629).
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  const size_t bytes = lead < 0x80   ? 1
                       : lead < 0xC2 ? 0
                       : lead < 0xE0 ? 2
                       : lead < 0xF0 ? 3
                       : lead < 0xF5 ? 4
                                     : 0;
  if (bytes == 0 || bytes > text.size()) return 0;
  for (size_t i = 1; i < bytes; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  // Longer than needed, a surrogate, or past U+10FFFF.
  if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) ||
      (lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F))
    return 0;
  return bytes;
}

bool is_control(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(character[i]); };
  return byte(0) < 0x20 || byte(0) == 0x7F || (byte(0) == 0xC2 && byte(1) < 0xA0);
}

}  // namespace

std::optional<FrontendMessage> parse_message(std::span<const uint8_t> packet) {
  gui::MessageHeader header;
  if (packet.size() < sizeof header) return std::nullopt;
  std::memcpy(&header, packet.data(), sizeof header);
  switch (static_cast<gui::Type>(header.type)) {
    case gui::Type::kHello:
      return parse_as<gui::Hello>(packet);
    case gui::Type::kDoneReading:
      return parse_as<gui::DoneReading>(packet);
    case gui::Type::kUnmapped:
      return parse_as<gui::Unmapped>(packet);
    case gui::Type::kKey:
      return parse_as<gui::Key>(packet);
    case gui::Type::kMotion:
      return parse_as<gui::Motion>(packet);
    case gui::Type::kButton:
      return parse_as<gui::Button>(packet);
    case gui::Type::kWheel:
      return parse_as<gui::Wheel>(packet);
    case gui::Type::kFocus:
      return parse_as<gui::Focus>(packet);
    case gui::Type::kConfigure:
      return parse_as<gui::Configure>(packet);
    case gui::Type::kClose:
      return parse_as<gui::Close>(packet);
    default:
      return std::nullopt;
  }
}

void copy_text(std::span<char> to, std::string_view text) {
  size_t length = 0;
  while (!text.empty()) {
    const size_t bytes = character_bytes(text);
    const bool shown = bytes > 0 && !is_control(text.substr(0, bytes));
    const size_t written = shown ? bytes : 1;
    if (length + written >= to.size()) break;
    if (shown) {
      std::memcpy(to.data() + length, text.data(), bytes);
    } else {
      to[length] = '?';
    }
    length += written;
    text.remove_prefix(std::max<size_t>(bytes, 1));
  }
  to[length] = 0;
}

gui::Surface surface_message(SurfaceId id, const SurfaceState& state) {
  auto message = make_message<gui::Surface>(gui::Type::kSurface);
  message.surface = id;
  message.parent = state.parent;
  message.kind = static_cast<uint32_t>(state.kind);
  message.flags = state.flags;
  message.x = state.x;
  message.y = state.y;
  message.width = state.width;
  message.height = state.height;
  message.output = state.output;
  copy_text(message.title, state.title);
  return message;
}

gui::Frame frame_message(SurfaceId id, uint64_t frame, const SurfaceContent& content,
                         const Rect& damage) {
  auto message = make_message<gui::Frame>(gui::Type::kFrame);
  message.surface = id;
  message.frame = frame;
  message.buffer = gui::kNoBuffer;
  if (!content.buffer.valid()) return message;
  message.buffer = content.buffer.slot;
  message.format = content.format;
  message.generation = content.buffer.generation;
  message.offset = content.offset;
  message.stride = content.stride;
  message.width = content.width;
  message.height = content.height;
  message.damage_x = damage.x;
  message.damage_y = damage.y;
  message.damage_width = damage.width;
  message.damage_height = damage.height;
  return message;
}

gui::Cursor cursor_message(SurfaceId id, const CursorContent& cursor) {
  auto message = make_message<gui::Cursor>(gui::Type::kCursor);
  message.surface = id;
  message.buffer = gui::kNoBuffer;
  if (!cursor.image.buffer.valid()) return message;
  message.buffer = cursor.image.buffer.slot;
  message.width = cursor.image.width;
  message.height = cursor.image.height;
  message.hot_x = cursor.hot_x;
  message.hot_y = cursor.hot_y;
  message.generation = cursor.image.buffer.generation;
  message.offset = cursor.image.offset;
  return message;
}

Rect united(const Rect& a, const Rect& b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  const uint32_t x = std::min(a.x, b.x);
  const uint32_t y = std::min(a.y, b.y);
  return {x, y, std::max(a.x + a.width, b.x + b.width) - x,
          std::max(a.y + a.height, b.y + b.height) - y};
}

Rect clipped(const Rect& rect, uint32_t width, uint32_t height) {
  if (rect.x >= width || rect.y >= height || rect.empty()) return {};
  return {rect.x, rect.y, std::min(rect.width, width - rect.x),
          std::min(rect.height, height - rect.y)};
}

}  // namespace lethe
