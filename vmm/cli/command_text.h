// What there is to know about a command of `lethe`, in words: its help, its man page and its
// completions are made of this, and this of the command's own option parser.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lethe {

struct OptionText {
  std::vector<std::string> names;  // "-n", "--lines"; or a positional's: "NAME"
  bool positional = false;
  bool required = false;
  bool repeatable = false;
  std::string value;  // of an option: what stands for its value, such as "TEXT"; empty: a flag
  std::string help;
};

struct CommandText {
  std::string name;
  std::string summary;  // as in the table of commands
  std::string description;
  std::vector<std::string> examples;  // a line each
  std::vector<std::string> exits;     // "0 done", ...
  std::vector<OptionText> options;    // as they are declared; --help first
};

// Lines of at most `width` columns, each but the first indented.
[[nodiscard]] std::string wrapped(std::string_view text, size_t width, size_t indent);

// "lethe log [OPTIONS] NAME".
[[nodiscard]] std::string usage_of(const CommandText& text);

}  // namespace lethe
