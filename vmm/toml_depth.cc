#include "vmm/toml_depth.h"

namespace lethe {
namespace {

// The end of the string that starts at `at` (a quote), by TOML 1.0: single quotes have no escapes,
// tripled ones span lines. An unended one-line string ends before its newline, where toml++ gives
// up too.
size_t end_of_string(std::string_view text, size_t at) {
  const char quote = text[at];
  const bool tripled = text.substr(at, 3) == std::string_view(quote == '"' ? "\"\"\"" : "'''");
  size_t i = at + (tripled ? 3 : 1);
  while (i < text.size()) {
    if (text[i] == '\\' && quote == '"') {
      i += 2;
      continue;
    }
    if (!tripled && text[i] == '\n') return i;
    if (text[i] == quote && !tripled) return i + 1;
    if (text[i] == quote && text.substr(i, 3) == text.substr(at, 3)) {
      i += 3;
      // Up to two more quotes belong to the string: """a""""" ends in two of them.
      for (int extra = 0; extra < 2 && i < text.size() && text[i] == quote; ++extra) ++i;
      return i;
    }
    ++i;
  }
  return text.size();
}

}  // namespace

std::optional<size_t> toml_too_deep(std::string_view text) {
  size_t line = 1;
  size_t dots = 0;
  size_t i = 0;
  while (i < text.size()) {
    const char c = text[i];
    size_t next = i + 1;
    if (c == '"' || c == '\'') {
      next = end_of_string(text, i);
      for (const char inside : text.substr(i, next - i)) line += inside == '\n' ? 1 : 0;
    } else if (c == '#') {
      while (next < text.size() && text[next] != '\n') ++next;
    } else if (c == '.') {
      if (++dots > kTomlKeyPartsMax) return line;
    } else if (c == '=' || c == ',' || c == '{' || c == '[' || c == '\n') {
      dots = 0;
      if (c == '\n') ++line;
    }
    i = next;
  }
  return std::nullopt;
}

}  // namespace lethe
