#include "base/state.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/assert.h"

namespace lethe {
namespace {

// For messages: the file may hold anything.
std::string plain(std::string text) {
  std::ranges::replace_if(text, [](char c) { return c < ' ' || c > '~'; }, '?');
  return text;
}

}  // namespace

bool StateWriter::has_room(size_t count) {
  x_too_long |= count > x_bytes_max - x_bytes.size();
  return !x_too_long;
}

void StateWriter::bytes(std::span<const uint8_t> value) {
  LETHE_ASSERT(value.size() <= UINT32_MAX);
  number(static_cast<uint32_t>(value.size()));
  if (!has_room(value.size())) return;
  x_bytes.insert(x_bytes.end(), value.begin(), value.end());
}

void StateWriter::text(std::string_view value) {
  // SAFETY: the characters of the string, as bytes.
  bytes({reinterpret_cast<const uint8_t*>(value.data()), value.size()});
}

void StateWriter::begin_section(std::string_view name, uint32_t version) {
  text(name);
  number(version);
  x_open.push_back(x_bytes.size());
  number(uint64_t{0});  // the length: end_section() writes it
}

void StateWriter::end_section() {
  LETHE_ASSERT(!x_open.empty());
  const size_t at = x_open.back();
  x_open.pop_back();
  if (x_too_long) return;
  const uint64_t length = x_bytes.size() - at - sizeof(uint64_t);
  for (size_t i = 0; i < sizeof length; ++i)
    x_bytes[at + i] = static_cast<uint8_t>(length >> (8 * i));
}

std::vector<uint8_t> StateWriter::take() {
  LETHE_ASSERT(x_open.empty() && !x_too_long);
  return std::exchange(x_bytes, {});
}

std::span<const uint8_t> StateReader::take(size_t count) {
  if (ok() && count > x_left.size())
    fail(fmt::format("{} bytes are missing", count - x_left.size()));
  if (!ok()) return {};
  const auto taken = x_left.first(count);
  x_left = x_left.subspan(count);
  return taken;
}

bool StateReader::boolean() {
  const auto value = number<uint8_t>();
  if (value > 1) fail(fmt::format("{} is neither yes nor no", value));
  return value == 1;
}

std::span<const uint8_t> StateReader::bytes(size_t max) {
  const auto count = number<uint32_t>();
  if (ok() && count > max) fail(fmt::format("{} bytes where at most {} fit", count, max));
  return take(ok() ? count : 0);
}

std::string StateReader::text(size_t max) {
  const auto raw = bytes(max);
  return {raw.begin(), raw.end()};
}

void StateReader::bytes_into(std::span<uint8_t> to) {
  const auto count = number<uint32_t>();
  if (ok() && count != to.size()) fail(fmt::format("{} bytes where {} are due", count, to.size()));
  const auto raw = take(ok() ? to.size() : 0);
  std::copy(raw.begin(), raw.end(), to.begin());
}

void StateReader::begin_section(std::string_view name, uint32_t version) {
  constexpr size_t kNameMax = 256;
  const std::string found = text(kNameMax);
  const auto found_version = number<uint32_t>();
  const auto length = number<uint64_t>();
  if (ok() && found != name) fail(fmt::format("'{}' where '{}' is due", plain(found), name));
  if (ok() && found_version != version)
    fail(fmt::format("'{}' has version {}, this lethe reads {}", name, found_version, version));
  const auto content = take(ok() ? length : 0);
  x_open.push_back({std::string(name), x_left});
  x_left = content;
}

void StateReader::end_section() {
  LETHE_ASSERT(!x_open.empty());
  if (ok() && !x_left.empty()) fail(fmt::format("{} bytes too many", x_left.size()));
  x_left = x_open.back().rest;
  x_open.pop_back();
}

void StateReader::fail(std::string why) {
  if (!ok()) return;
  x_error = x_open.empty() ? std::move(why)
                           : fmt::format("in '{}': {}", x_open.back().name, std::move(why));
}

Result<> StateReader::check() const {
  if (ok()) return {};
  return Unexpected(Error{ErrorClass::kConfig, fmt::format("snapshot: {}", x_error)});
}

}  // namespace lethe
