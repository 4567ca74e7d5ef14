// A file's bytes: all of them written, or the older ones cut off. Any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/result.h"

namespace lethe {

// Writes all of it to a file, or whatever else blocks. The error (kHost) is errno's text alone; a
// part may have been written.
[[nodiscard]] Result<> write_all(int fd, std::span<const uint8_t> bytes);
[[nodiscard]] Result<> write_all(int fd, std::string_view text);

inline constexpr std::string_view kCutMark = "[lethe: older lines were dropped here]\n";

// If the file behind `fd` is a regular one with more than `bytes_max`, at least as many as kCutMark
// has: kCutMark and its last lines, in bytes_max / 2, are left of it. `fd` was opened to append;
// what another thread appends meanwhile may be lost. Returns its size then; 0 if it is no regular
// file. The error (kHost) is errno's text alone.
[[nodiscard]] Result<size_t> cut_file(int fd, size_t bytes_max);

}  // namespace lethe
