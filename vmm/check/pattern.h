// The regular expressions of a [check] table, matched against a guest's console.
//
// RE2, because the console is hostile input: matching takes time linear in it and bounded memory,
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

class ConsolePatterns {
 public:
  ConsolePatterns();
  ~ConsolePatterns();
  ConsolePatterns(ConsolePatterns&&) noexcept;
  ConsolePatterns& operator=(ConsolePatterns&&) noexcept;

  // Matches the whole console, line by line ('\r' before a newline is no part of the line). Returns
  // what is wrong, a text for each pattern that was not, or was, found; empty if all is right.
  [[nodiscard]] std::vector<std::string> judge(std::string_view console) const;

 private:
  friend Result<ConsolePatterns> compile_patterns(const CheckConfig&, const std::string&);
  std::vector<std::unique_ptr<re2::RE2>> x_must_match;
  std::vector<std::unique_ptr<re2::RE2>> x_must_not_match;
};

// The error (kConfig) names `file`, the key and the pattern.
[[nodiscard]] Result<ConsolePatterns> compile_patterns(const CheckConfig& check,
                                                       const std::string& file);

}  // namespace lethe
