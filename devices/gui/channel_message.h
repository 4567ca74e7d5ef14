// The GUI channel's messages (devices/gui/protocol.h), the VM's side: what frontends send is
// checked here, whole, before anything of it is used; what they are sent is put together here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <variant>

#include "devices/gui/gui.h"
#include "devices/gui/protocol.h"

namespace lethe {

using FrontendMessage =
    std::variant<gui::Hello, gui::DoneReading, gui::Unmapped, gui::Key, gui::Motion, gui::Button,
                 gui::Wheel, gui::Focus, gui::Configure, gui::Close>;

// A packet of a frontend's, copied and checked: size, type, and every field that has limits of its
// own. Hello's version is not checked (its answer is another one). Nothing if it breaks a rule.
[[nodiscard]] std::optional<FrontendMessage> parse_message(std::span<const uint8_t> packet);

// A message of type `type`, zeroed but for its header.
template <typename Message>
[[nodiscard]] Message make_message(gui::Type type) {
  Message message{};
  message.header = {static_cast<uint32_t>(type), sizeof(Message)};
  return message;
}

// SAFETY: the protocol's messages have no padding that is not named (devices/gui/protocol.h), and
// are read as bytes only.
template <typename Message>
[[nodiscard]] std::span<const uint8_t> bytes_of(const Message& message) {
  return {reinterpret_cast<const uint8_t*>(&message), sizeof message};
}

// Copies `text` with its final zero; cut at a character. What is not UTF-8, and control characters,
// become '?'.
void copy_text(std::span<char> to, std::string_view text);

[[nodiscard]] gui::Surface surface_message(SurfaceId id, const SurfaceState& state);
[[nodiscard]] gui::Frame frame_message(SurfaceId id, uint64_t frame, const SurfaceContent& content,
                                       const Rect& damage);
[[nodiscard]] gui::Cursor cursor_message(SurfaceId id, const CursorContent& cursor);

// The smallest rectangle that holds both; an empty one adds nothing.
[[nodiscard]] Rect united(const Rect& a, const Rect& b);
// What of `rect` is within [0, width) x [0, height); all 0 if nothing.
[[nodiscard]] Rect clipped(const Rect& rect, uint32_t width, uint32_t height);

}  // namespace lethe
