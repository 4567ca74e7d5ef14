// Checks of what a VM sends: bytes to a message whose every field holds what protocol.h says, or
// the reason why not. No state, any thread; what depends on earlier messages is client.h's.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <variant>

#include "base/result.h"
#include "devices/gui/protocol.h"

namespace lethe::gui {

using FromVm = std::variant<Welcome, Surface, SurfaceGone, Buffer, BufferGone, Frame, Cursor, Bye>;

// One packet with `descriptors` descriptors. The error (kHost) says what is wrong with it.
[[nodiscard]] Result<FromVm> check_packet(std::span<const std::byte> packet, size_t descriptors);

// "surface", for errors and logs; "type 99" for what is unknown.
[[nodiscard]] std::string type_name(uint32_t type);

// What a Bye says, in words: "the VM has ended".
[[nodiscard]] std::string bye_text(ByeReason reason);

// A guest's or a VM's text as it may be shown: UTF-8, where it is not (and for control characters)
// '?' stands. At most `bytes` bytes are read, up to the first zero.
[[nodiscard]] std::string shown_text(const char* text, size_t bytes);

// Bytes of one pixel, of every format.
inline constexpr uint32_t kPixelBytes = 4;

}  // namespace lethe::gui
