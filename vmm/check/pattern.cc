#include "vmm/check/pattern.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include "vmm/config_schema.h"

namespace lethe {
namespace {

using Patterns = std::vector<std::unique_ptr<re2::RE2>>;

constexpr int64_t kPatternMemoryMax = 8 << 20;  // bytes, for a pattern's program and caches

Result<Patterns> compile_list(const char* key, const std::vector<std::string>& texts,
                              const std::string& file) {
  RE2::Options options;
  options.set_log_errors(false);
  options.set_encoding(RE2::Options::EncodingLatin1);  // consoles are bytes, not always UTF-8
  options.set_max_mem(kPatternMemoryMax);
  Patterns patterns;
  for (size_t i = 0; i < texts.size(); ++i) {
    auto pattern = std::make_unique<RE2>(texts[i], options);
    if (!pattern->ok())
      return config_error("{}: key '{}', entry {}: '{}' is no regular expression: {}",
                          printable(file), key, i + 1, printable(texts[i]),
                          printable(pattern->error()));
    patterns.push_back(std::move(pattern));
  }
  return patterns;
}

}  // namespace

LinePatterns::LinePatterns() = default;
LinePatterns::~LinePatterns() = default;
LinePatterns::LinePatterns(LinePatterns&&) noexcept = default;
LinePatterns& LinePatterns::operator=(LinePatterns&&) noexcept = default;

Result<LinePatterns> compile_patterns(const PatternLists& lists, const std::string& file) {
  LinePatterns patterns;
  LETHE_TRY_ASSIGN(patterns.x_must_match, compile_list(lists.match_key, lists.match, file));
  LETHE_TRY_ASSIGN(patterns.x_must_not_match,
                   compile_list(lists.not_match_key, lists.not_match, file));
  return patterns;
}

Result<LinePatterns> compile_patterns(const CheckConfig& check, const std::string& file) {
  return compile_patterns(
      {"check.must_match", check.must_match, "check.must_not_match", check.must_not_match}, file);
}

std::vector<std::string> LinePatterns::judge(std::string_view text, std::string_view what) const {
  std::vector<bool> found(x_must_match.size());
  std::vector<std::string> bad_lines(x_must_not_match.size());
  std::vector<bool> bad(x_must_not_match.size());
  size_t start = 0;
  while (start < text.size()) {
    const size_t end = std::min(text.find('\n', start), text.size());
    std::string_view line = text.substr(start, end - start);
    start = end + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    const re2::StringPiece piece(line.data(), line.size());
    for (size_t i = 0; i < found.size(); ++i)
      if (!found[i]) found[i] = RE2::PartialMatch(piece, *x_must_match[i]);
    for (size_t i = 0; i < bad.size(); ++i) {
      if (bad[i] || !RE2::PartialMatch(piece, *x_must_not_match[i])) continue;
      bad[i] = true;
      bad_lines[i] = printable(line);
    }
  }
  std::vector<std::string> wrong;
  for (size_t i = 0; i < found.size(); ++i)
    if (!found[i])
      wrong.push_back(
          fmt::format("{} has no match of '{}'", what, printable(x_must_match[i]->pattern())));
  for (size_t i = 0; i < bad.size(); ++i)
    if (bad[i])
      wrong.push_back(fmt::format("{} matches '{}', which it must not: '{}'", what,
                                  printable(x_must_not_match[i]->pattern()), bad_lines[i]));
  return wrong;
}

}  // namespace lethe
