// "Did you mean": the known word nearest to one that is not known.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace lethe {

// The candidate with the fewest letters changed, added, dropped or swapped, if that is at most a
// third of its length (at least one letter). Words over 64 letters get no suggestion.
[[nodiscard]] std::optional<std::string_view> closest_word(
    std::string_view word, std::span<const std::string_view> candidates);

// "; did you mean 'x'?" or an empty text.
[[nodiscard]] std::string did_you_mean(std::string_view word,
                                       std::span<const std::string_view> candidates);

}  // namespace lethe
