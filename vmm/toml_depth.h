// A guard before toml++: its tables nest by dotted keys ("a.a.a.a = 1") without a limit, and are
// destroyed by recursion, so a file of 1 MiB could exhaust the stack.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace lethe {

inline constexpr size_t kTomlKeyPartsMax = 16;

// The line (from 1) of the first key or number with more than kTomlKeyPartsMax dots outside of
// strings and comments; nothing if there is none.
[[nodiscard]] std::optional<size_t> toml_too_deep(std::string_view text);

}  // namespace lethe
