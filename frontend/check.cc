#include "frontend/check.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <optional>

namespace lethe::gui {
namespace {

using Complaint = std::optional<std::string>;

bool terminated(const char* text, size_t bytes) { return std::memchr(text, 0, bytes) != nullptr; }
bool side(uint32_t pixels) { return pixels >= 1 && pixels <= kSidePixelsMax; }

Complaint complaint(const Welcome& welcome) {
  if (welcome.magic != kMagic) return "it is no GUI channel";
  if (welcome.version != kVersion)
    return fmt::format("version {} is not ours, {}", welcome.version, kVersion);
  if (!terminated(welcome.vm_name, sizeof welcome.vm_name)) return "its name has no end";
  return std::nullopt;
}

Complaint complaint(const Surface& surface) {
  if (surface.surface == 0) return "0 is no surface";
  if (surface.parent == surface.surface) return "it is its own parent";
  if (surface.kind > static_cast<uint32_t>(SurfaceKind::kWindow))
    return fmt::format("unknown kind {}", surface.kind);
  if ((surface.flags & ~kSurfaceFlags) != 0) return fmt::format("flags {:#x}", surface.flags);
  if (!side(surface.width) || !side(surface.height))
    return fmt::format("size {}x{}", surface.width, surface.height);
  if (surface.output >= kOutputsMax) return fmt::format("output {}", surface.output);
  if (surface.reserved != 0) return "reserved is not 0";
  if (!terminated(surface.title, sizeof surface.title)) return "its title has no end";
  return std::nullopt;
}

Complaint complaint(const SurfaceGone& gone) {
  if (gone.surface == 0) return "0 is no surface";
  return std::nullopt;
}

Complaint complaint(const Buffer& buffer) {
  if (buffer.buffer >= kBuffersMax) return fmt::format("buffer {}", buffer.buffer);
  if (buffer.reserved != 0) return "reserved is not 0";
  if (buffer.bytes == 0 || buffer.bytes > kBufferBytesMax)
    return fmt::format("{} bytes", buffer.bytes);
  return std::nullopt;
}

Complaint complaint(const BufferGone& gone) {
  if (gone.buffer >= kBuffersMax) return fmt::format("buffer {}", gone.buffer);
  if (gone.revoked > 1) return fmt::format("revoked {}", gone.revoked);
  return std::nullopt;
}

Complaint complaint_of_damage(const Frame& frame) {
  const bool empty = frame.damage_width == 0 && frame.damage_height == 0;
  if (empty && frame.damage_x == 0 && frame.damage_y == 0) return std::nullopt;
  if (frame.damage_width == 0 || frame.damage_height == 0 || frame.damage_x >= frame.width ||
      frame.damage_y >= frame.height || frame.damage_width > frame.width - frame.damage_x ||
      frame.damage_height > frame.height - frame.damage_y)
    return fmt::format("damage {}x{}+{}+{} of {}x{}", frame.damage_width, frame.damage_height,
                       frame.damage_x, frame.damage_y, frame.width, frame.height);
  return std::nullopt;
}

Complaint complaint(const Frame& frame) {
  if (frame.surface == 0) return "0 is no surface";
  if (frame.reserved != 0) return "reserved is not 0";
  if (frame.buffer == kNoBuffer) {
    const uint64_t all = frame.format | frame.generation | frame.offset | frame.stride |
                         frame.width | frame.height | frame.damage_x | frame.damage_y |
                         frame.damage_width | frame.damage_height;
    if (all != 0) return "it shows nothing, but is not all 0";
    return std::nullopt;
  }
  if (frame.buffer >= kBuffersMax) return fmt::format("buffer {}", frame.buffer);
  if (!known_format(frame.format)) return fmt::format("unknown format {}", frame.format);
  if (!side(frame.width) || !side(frame.height))
    return fmt::format("size {}x{}", frame.width, frame.height);
  if (frame.stride < frame.width * kPixelBytes || frame.stride > kBufferBytesMax)
    return fmt::format("stride {} of a width of {}", frame.stride, frame.width);
  if (frame.offset > kBufferBytesMax) return fmt::format("offset {}", frame.offset);
  return complaint_of_damage(frame);
}

Complaint complaint(const Cursor& cursor) {
  if (cursor.surface == 0) return "0 is no surface";
  if (cursor.reserved != 0) return "reserved is not 0";
  if (cursor.buffer == kNoBuffer) return std::nullopt;
  if (cursor.buffer >= kBuffersMax) return fmt::format("buffer {}", cursor.buffer);
  if (cursor.width < 1 || cursor.width > kCursorPixelsMax || cursor.height < 1 ||
      cursor.height > kCursorPixelsMax)
    return fmt::format("size {}x{}", cursor.width, cursor.height);
  if (cursor.offset > kBufferBytesMax) return fmt::format("offset {}", cursor.offset);
  return std::nullopt;
}

Complaint complaint(const Bye& bye) {
  if (bye.reason > static_cast<uint32_t>(ByeReason::kTooSlow))
    return fmt::format("unknown reason {}", bye.reason);
  return std::nullopt;
}

Unexpected refused(uint32_t type, const std::string& why) {
  return host_error("the VM sent a bad message ({}): {}", type_name(type), why);
}

template <typename T>
Result<FromVm> check_as(std::span<const std::byte> packet, uint32_t type) {
  if (packet.size() != sizeof(T))
    return refused(type, fmt::format("{} bytes, not {}", packet.size(), sizeof(T)));
  T message;
  std::memcpy(&message, packet.data(), sizeof message);
  if (const Complaint why = complaint(message)) return refused(type, *why);
  return message;
}

// How many bytes the UTF-8 character at `text` has, 0 if it is none (RFC 3629).
size_t utf8_length(const unsigned char* text, size_t left) {
  const unsigned char first = text[0];
  const size_t length = first < 0x80   ? 1
                        : first < 0xC2 ? 0
                        : first < 0xE0 ? 2
                        : first < 0xF0 ? 3
                        : first < 0xF5 ? 4
                                       : 0;
  if (length == 0 || length > left) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((text[i] & 0xC0) != 0x80) return 0;
  if (first == 0xE0 && text[1] < 0xA0) return 0;  // longer than need be
  if (first == 0xED && text[1] > 0x9F) return 0;  // surrogates
  if (first == 0xF0 && text[1] < 0x90) return 0;
  if (first == 0xF4 && text[1] > 0x8F) return 0;
  if (first == 0xC2 && text[1] < 0xA0) return 0;  // control characters of Latin-1
  return length;
}

}  // namespace

Result<FromVm> check_packet(std::span<const std::byte> packet, size_t descriptors) {
  MessageHeader header{};
  if (packet.size() < sizeof header)
    return host_error("the VM sent a message of {} bytes", packet.size());
  std::memcpy(&header, packet.data(), sizeof header);
  if (header.size != packet.size())
    return refused(header.type,
                   fmt::format("{} bytes, but it says {}", packet.size(), header.size));
  const auto type = static_cast<Type>(header.type);
  if (descriptors > (type == Type::kBuffer ? 1U : 0U))
    return refused(header.type, fmt::format("{} descriptors", descriptors));
  switch (type) {
    case Type::kWelcome:
      return check_as<Welcome>(packet, header.type);
    case Type::kSurface:
      return check_as<Surface>(packet, header.type);
    case Type::kSurfaceGone:
      return check_as<SurfaceGone>(packet, header.type);
    case Type::kBuffer:
      return check_as<Buffer>(packet, header.type);
    case Type::kBufferGone:
      return check_as<BufferGone>(packet, header.type);
    case Type::kFrame:
      return check_as<Frame>(packet, header.type);
    case Type::kCursor:
      return check_as<Cursor>(packet, header.type);
    case Type::kBye:
      return check_as<Bye>(packet, header.type);
    default:
      return refused(header.type, "a VM sends no such message");
  }
}

std::string type_name(uint32_t type) {
  static constexpr std::array kNames = {"Welcome",    "Surface", "SurfaceGone", "Buffer",
                                        "BufferGone", "Frame",   "Cursor",      "Bye"};
  if (type >= 1 && type <= kNames.size()) return kNames[type - 1];
  return fmt::format("type {}", type);
}

std::string bye_text(ByeReason reason) {
  switch (reason) {
    case ByeReason::kVmEnded:
      return "the VM has ended";
    case ByeReason::kWrongVersion:
      return "the VM speaks another version of the GUI channel: use the programs of one release";
    case ByeReason::kBadMessage:
      return "the VM refused a message of ours as malformed";
    case ByeReason::kTooMany:
      return "the VM has too many frontends, or no descriptors left: close another one";
    case ByeReason::kTooSlow:
      return "the VM gave up on us: we did not read for too long";
  }
  return "the VM said goodbye";
}

std::string shown_text(const char* text, size_t bytes) {
  const size_t size = strnlen(text, bytes);
  // SAFETY: char may be looked at as unsigned char; strnlen() stayed within `bytes`.
  const auto* at = reinterpret_cast<const unsigned char*>(text);
  std::string shown;
  for (size_t i = 0; i < size;) {
    const size_t length = utf8_length(at + i, size - i);
    if (length == 0 || (length == 1 && (at[i] < 0x20 || at[i] == 0x7F))) {
      shown += '?';
      ++i;
    } else {
      shown.append(text + i, length);
      i += length;
    }
  }
  return shown;
}

}  // namespace lethe::gui
