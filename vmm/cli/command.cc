#include "vmm/cli/command.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "vmm/cli/cli.h"
#include "vmm/config_schema.h"
#include "vmm/suggest.h"

namespace lethe {

namespace {

constexpr size_t kHelpColumns = 78;

// "a; b." as "a", "b".
std::vector<std::string> parts_of(std::string_view text) {
  if (text.ends_with('.')) text.remove_suffix(1);
  std::vector<std::string> parts;
  while (!text.empty()) {
    const size_t end = std::min(text.find("; "), text.size());
    parts.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 2, text.size()));
  }
  return parts;
}

}  // namespace

std::string wrapped(std::string_view text, size_t width, size_t indent) {
  std::string lines;
  size_t column = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (column > 0 && column + 1 + end > width) {
      lines += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > 0) {
      lines += ' ';
      ++column;
    }
    lines += text.substr(0, end);
    column += end;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

std::string usage_of(const CommandText& text) {
  std::string usage = "lethe " + text.name + " [OPTIONS]";
  for (const OptionText& option : text.options) {
    if (!option.positional) continue;
    const std::string word = option.names[0] + (option.repeatable ? "..." : "");
    usage += option.required ? " " + word : " [" + word + "]";
  }
  return usage;
}

CommandText* CommandLine::described = nullptr;

CommandText describe(const Command& command) {
  CommandText text;
  std::string name = command.name;
  std::array<char*, 2> words = {name.data(), nullptr};
  CommandLine::described = &text;
  (void)command.run(1, words.data());
  CommandLine::described = nullptr;
  text.name = command.name;
  text.summary = command.summary;
  return text;
}

CommandLine::CommandLine(const char* command, const char* description, const char* examples,
                         const char* exits)
    : x_command(command),
      x_description(description),
      x_examples(examples),
      x_exits(exits),
      x_app(wrapped(description, kHelpColumns, 0), fmt::format("lethe {}", command)) {
  std::string footer = "Examples:\n" + x_examples;
  if (!x_exits.empty()) {
    footer += "\nExit codes:\n";
    for (const std::string& exit : parts_of(x_exits))
      footer += "  " + wrapped(exit, kHelpColumns, 4) + "\n";
  }
  x_app.footer(footer);
  x_app.set_help_flag("-h,--help", "Print this help");
}

void CommandLine::describe_to(CommandText& text) const {
  text.description = x_description;
  for (std::string_view left = x_examples; !left.empty();) {
    const size_t end = std::min(left.find('\n'), left.size());
    const std::string_view example = left.substr(0, end);
    if (!example.empty())
      text.examples.emplace_back(example.substr(example.find_first_not_of(' ')));
    left.remove_prefix(std::min(end + 1, left.size()));
  }
  text.exits = parts_of(x_exits);
  for (const CLI::Option* option : x_app.get_options()) {
    if (option->get_group().empty()) continue;  // for tests
    OptionText found;
    found.positional = option->get_positional();
    found.required = option->get_required();
    found.repeatable = option->get_items_expected_max() > 1;
    found.help = option->get_description();
    if (found.positional) {
      found.names = {option->get_name(true)};
    } else {
      for (const std::string& name : option->get_snames()) found.names.push_back("-" + name);
      for (const std::string& name : option->get_lnames()) found.names.push_back("--" + name);
      if (option->get_items_expected_max() > 0) found.value = option->get_type_name();
    }
    text.options.push_back(std::move(found));
  }
}

std::string CommandLine::explain(const CLI::ParseError& error) {
  const auto* extras = dynamic_cast<const CLI::ExtrasError*>(&error);
  if (extras == nullptr) return printable(error.what());
  const std::vector<std::string> left = x_app.remaining();
  if (left.empty()) return printable(error.what());
  const std::string word = left[0].substr(0, left[0].find('='));
  if (!word.starts_with('-'))
    return fmt::format("the argument '{}' is one too many", printable(word));
  std::vector<std::string> names;
  for (const CLI::Option* option : x_app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  const std::vector<std::string_view> candidates(names.begin(), names.end());
  return fmt::format("the option '{}' is not known{}", printable(word),
                     did_you_mean(word, candidates));
}

std::optional<int> CommandLine::parse(int argc, char** argv) {
  if (described != nullptr) {
    describe_to(*described);
    return 0;
  }
  try {
    x_app.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::CallForHelp&) {
    std::fputs(x_app.help().c_str(), stdout);
    return 0;
  } catch (const CLI::ParseError& error) {
    print_error(
        fmt::format("{}: {} (lethe {} --help tells more)", x_command, explain(error), x_command));
    return kExitUsage;
  }
}

CLI::Validator number_between(double min, double max) {
  return {[min, max](std::string& text) {
            double number = 0;
            if (CLI::detail::lexical_cast(text, number) && number >= min && number <= max)
              return std::string();
            return fmt::format("Value {} not in range {} to {}", printable(text), min, max);
          },
          fmt::format("in [{} - {}]", min, max)};
}

void add_start_options(CLI::App& app, StartOptions& start, RunOptions& options) {
  app.add_option("--log", start.log, "What to log: LEVEL, or MODULE=LEVEL,... (default: warn)");
  app.add_flag("--non-interactive,--no-tty", options.non_interactive,
               "Leave the terminal alone: only print the console");
  app.add_flag("-d,--detach", start.detached,
               "Return when the VM runs, and leave it to itself (lethe ps lists it)");
}

}  // namespace lethe
