#include "vmm/suggest.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

namespace lethe {
namespace {

constexpr size_t kWordMax = 64;

// Optimal string alignment distance: Levenshtein with swaps of neighbours.
size_t distance(std::string_view a, std::string_view b) {
  std::array<std::array<size_t, kWordMax + 1>, 3> rows{};
  for (size_t j = 0; j <= b.size(); ++j) rows[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    auto& row = rows[i % 3];
    const auto& above = rows[(i + 2) % 3];
    const auto& above_that = rows[(i + 1) % 3];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = a[i - 1] == b[j - 1] ? 0 : 1;
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], above_that[j - 2] + 1);
    }
  }
  return rows[a.size() % 3][b.size()];
}

}  // namespace

std::optional<std::string_view> closest_word(std::string_view word,
                                             std::span<const std::string_view> candidates) {
  std::optional<std::string_view> best;
  size_t best_distance = 0;
  if (word.size() > kWordMax) return best;
  for (const std::string_view candidate : candidates) {
    if (candidate.size() > kWordMax) continue;
    const size_t found = distance(word, candidate);
    if (found > std::max<size_t>(1, candidate.size() / 3)) continue;
    if (best && found >= best_distance) continue;
    best = candidate;
    best_distance = found;
  }
  return best;
}

std::string did_you_mean(std::string_view word, std::span<const std::string_view> candidates) {
  const auto best = closest_word(word, candidates);
  return best ? fmt::format("; did you mean '{}'?", *best) : std::string();
}

}  // namespace lethe
