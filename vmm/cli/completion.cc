#include "vmm/cli/completion.h"

#include <fmt/format.h>

#include <cstdint>

namespace lethe {
namespace {

enum class Takes : uint8_t { kNothing, kVm, kFile, kCommand, kShell };

// What a positional stands for, by its name: a convention of the commands' parsers.
Takes takes_of(const OptionText& positional) {
  const std::string& name = positional.names[0];
  if (name == "NAME") return Takes::kVm;
  if (name == "COMMAND") return Takes::kCommand;
  if (name == "SHELL") return Takes::kShell;
  return name == "BYTES" ? Takes::kNothing : Takes::kFile;
}

// The first positional's: the one that is typed most.
Takes takes_of(const CommandText& text) {
  for (const OptionText& option : text.options)
    if (option.positional) return takes_of(option);
  return Takes::kNothing;
}

std::string names_of(std::span<const CommandText> commands) {
  std::string names;
  for (const CommandText& text : commands) names += (names.empty() ? "" : " ") + text.name;
  return names;
}

constexpr const char* kShells = "bash zsh fish";

// The text between single quotes; none of ours has one that matters.
std::string quotable(std::string_view text) {
  std::string out;
  for (const char c : text) out += c == '\'' ? "’" : std::string(1, c);
  return out;
}

}  // namespace

std::string bash_completion(std::span<const CommandText> commands) {
  std::string text = fmt::format(
      R"bash(# bash completion of lethe: source <(lethe completion bash)
_lethe() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
  local options= values= takes=
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    mapfile -t COMPREPLY < <(compgen -W "{}" -- "$word")
    return
  fi
  case ${{COMP_WORDS[1]}} in
)bash",
      names_of(commands));
  for (const CommandText& command : commands) {
    std::string options;
    std::string values;
    for (const OptionText& option : command.options)
      for (const std::string& name : option.names) {
        if (option.positional) continue;
        options += (options.empty() ? "" : " ") + name;
        if (!option.value.empty()) values += " " + name;
      }
    constexpr const char* kTakes[] = {"", "vm", "file", "command", "shell"};
    text += fmt::format("    {}) options='{}' values='{} ' takes={} ;;\n", command.name, options,
                        values, kTakes[static_cast<size_t>(takes_of(command))]);
  }
  return text + fmt::format(R"bash(  esac
  if [[ $values == *" $before "* ]]; then
    takes=file
  elif [[ $word == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
    return
  fi
  case $takes in
    vm)
      takes=$("${{COMP_WORDS[0]}}" ps --quiet 2>/dev/null)
      mapfile -t COMPREPLY < <(compgen -W "$takes" -- "$word")
      ;;
    command) mapfile -t COMPREPLY < <(compgen -W "{}" -- "$word") ;;
    shell) mapfile -t COMPREPLY < <(compgen -W "{}" -- "$word") ;;
    file)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      ;;
  esac
}}
complete -F _lethe lethe
)bash",
                            names_of(commands), kShells);
}

std::string zsh_completion(std::span<const CommandText> commands) {
  // In a specification of _arguments and _describe, colons and brackets have meanings.
  const auto plain = [](std::string_view text) {
    std::string out;
    for (const char c : quotable(text))
      out += (c == ':' || c == '[' || c == ']' || c == '\\') ? fmt::format("\\{}", c)
                                                             : std::string(1, c);
    return out;
  };
  const auto action = [&](Takes takes) -> std::string {
    switch (takes) {
      case Takes::kVm:
        return "_lethe_vms";
      case Takes::kFile:
        return "_files";
      case Takes::kCommand:
        return fmt::format("({})", names_of(commands));
      case Takes::kShell:
        return fmt::format("({})", kShells);
      case Takes::kNothing:
        break;
    }
    return " ";
  };
  std::string text =
      "#compdef lethe\n# zsh completion of lethe: lethe completion zsh > \"${fpath[1]}/_lethe\"\n"
      "_lethe_vms() {\n  local -a vms\n"
      "  vms=(${(f)\"$(_call_program vms lethe ps --quiet 2>/dev/null)\"})\n"
      "  compadd -a vms\n}\n\n_lethe() {\n  local -a commands\n  commands=(\n";
  for (const CommandText& command : commands)
    text += fmt::format("    '{}:{}'\n", command.name, plain(command.summary));
  text +=
      "  )\n  if ((CURRENT == 2)); then\n    _describe -t commands 'lethe command' commands\n"
      "    return\n  fi\n  local command=$words[2]\n  shift words\n  ((CURRENT--))\n"
      "  case $command in\n";
  for (const CommandText& command : commands) {
    text += fmt::format("    {}) _arguments", command.name);
    int place = 0;
    for (const OptionText& option : command.options) {
      if (option.positional) {
        const std::string where = option.repeatable ? "*" : std::to_string(++place);
        text +=
            fmt::format(" \\\n      '{}:{}:{}'", where, option.names[0], action(takes_of(option)));
        continue;
      }
      const std::string value = option.value.empty() ? "" : ":" + plain(option.value) + ":_files";
      for (const std::string& name : option.names)
        text += fmt::format(" \\\n      '{}[{}]{}'", name, plain(option.help), value);
    }
    text += " ;;\n";
  }
  return text + "  esac\n}\n\n_lethe \"$@\"\n";
}

std::string fish_completion(std::span<const CommandText> commands) {
  std::string text =
      "# fish completion of lethe: lethe completion fish > ~/.config/fish/completions/lethe.fish\n"
      "complete -c lethe -f\n";
  for (const CommandText& command : commands)
    text += fmt::format("complete -c lethe -n __fish_use_subcommand -a {} -d '{}'\n", command.name,
                        quotable(command.summary));
  for (const CommandText& command : commands) {
    const std::string start =
        fmt::format("complete -c lethe -n '__fish_seen_subcommand_from {}'", command.name);
    for (const OptionText& option : command.options) {
      if (option.positional) continue;
      std::string names;
      for (const std::string& name : option.names)
        names += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      text += fmt::format("{}{}{} -d '{}'\n", start, names, option.value.empty() ? "" : " -r -F",
                          quotable(option.help));
    }
    switch (takes_of(command)) {
      case Takes::kVm:
        text += start + " -a '(lethe ps --quiet 2>/dev/null)'\n";
        break;
      case Takes::kFile:
        text += start + " -F\n";
        break;
      case Takes::kCommand:
        text += fmt::format("{} -a '{}'\n", start, names_of(commands));
        break;
      case Takes::kShell:
        text += fmt::format("{} -a '{}'\n", start, kShells);
        break;
      case Takes::kNothing:
        break;
    }
  }
  return text;
}

}  // namespace lethe
