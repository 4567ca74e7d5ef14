// The regular expressions of a [check] table, matched against what a guest prints.
//
// RE2, because that is hostile input: matching takes time linear in it and bounded memory,
// whatever the pattern, where backtracking engines (std::regex) can take exponential time or
// overflow the stack. Its syntax has no look-around and no back-references.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "vmm/config.h"

namespace re2 {
class RE2;
}

namespace lethe {

struct PatternLists {
  const char* match_key;  // the keys' names, for messages
  const std::vector<std::string>& match;
  const char* not_match_key;
  const std::vector<std::string>& not_match;
};

class LinePatterns {
 public:
  LinePatterns();
  ~LinePatterns();
  LinePatterns(LinePatterns&&) noexcept;
  LinePatterns& operator=(LinePatterns&&) noexcept;

  // Matches the whole text, line by line ('\r' before a newline is no part of the line). Returns
  // what is wrong, a text for each pattern that was not, or was, found; empty if all is right.
  // `what` is the text, in words: "the console".
  [[nodiscard]] std::vector<std::string> judge(std::string_view text,
                                               std::string_view what = "the console") const;

 private:
  friend Result<LinePatterns> compile_patterns(const PatternLists&, const std::string&);
  std::vector<std::unique_ptr<re2::RE2>> x_must_match;
  std::vector<std::unique_ptr<re2::RE2>> x_must_not_match;
};

// The error (kConfig) names `file`, the key and the pattern.
[[nodiscard]] Result<LinePatterns> compile_patterns(const PatternLists& lists,
                                                    const std::string& file);
// check.must_match and check.must_not_match.
[[nodiscard]] Result<LinePatterns> compile_patterns(const CheckConfig& check,
                                                    const std::string& file);

}  // namespace lethe
