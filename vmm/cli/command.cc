#include "vmm/cli/command.h"

#include <fmt/format.h>

#include "vmm/cli/cli.h"
#include "vmm/config_schema.h"
#include "vmm/suggest.h"

namespace lethe {

CommandLine::CommandLine(const char* command, const char* description, const char* examples)
    : x_command(command), x_app(description, fmt::format("lethe {}", command)) {
  x_app.footer(fmt::format("Examples:\n{}", examples));
  x_app.set_help_flag("-h,--help", "Print this help");
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

}  // namespace lethe
