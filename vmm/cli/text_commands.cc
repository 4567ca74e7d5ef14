// completion and man: the table of commands in other forms.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/cli/completion.h"
#include "vmm/cli/man_page.h"
#include "vmm/config_schema.h"
#include "vmm/suggest.h"

namespace lethe {
namespace {

std::vector<CommandText> all_texts() {
  std::vector<CommandText> texts;
  for (const Command& command : commands()) texts.push_back(describe(command));
  return texts;
}

Result<> write_pages(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return host_error("cannot make '{}': {}", printable(directory), error.message());
  const std::vector<CommandText> texts = all_texts();
  const auto write = [&](const std::string& name, const std::string& page) -> Result<> {
    const std::string path = directory + "/" + name;
    std::ofstream file(path, std::ios::trunc);
    file << page << std::flush;
    if (!file) return host_error("cannot write '{}': {}", printable(path), errno_text(errno));
    return {};
  };
  for (const CommandText& text : texts)
    LETHE_TRY(write("lethe-" + text.name + ".1", man_page(text)));
  return write("lethe.1", man_page_of_all(texts));
}

}  // namespace

int command_completion(int argc, char** argv) {
  CommandLine line("completion",
                   "Prints what a shell needs to complete lethe's commands, options, and names of "
                   "VMs that run.",
                   "  source <(lethe completion bash)\n"
                   "  lethe completion zsh > \"${fpath[1]}/_lethe\"\n"
                   "  lethe completion fish > ~/.config/fish/completions/lethe.fish\n",
                   "0 printed; 2 bad usage.");
  std::string shell;
  line.app()
      .add_option("SHELL", shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  if (const auto code = line.parse(argc, argv)) return *code;
  const std::vector<CommandText> texts = all_texts();
  const std::string script = shell == "bash"  ? bash_completion(texts)
                             : shell == "zsh" ? zsh_completion(texts)
                                              : fish_completion(texts);
  std::fputs(script.c_str(), stdout);
  return 0;
}

int command_man(int argc, char** argv) {
  CommandLine line("man",
                   "Prints the manual page of a command, or of lethe itself: the text of --help, "
                   "as man reads it.",
                   "  lethe man run | man -l -\n"
                   "  lethe man --out ~/.local/share/man/man1     # all of them\n",
                   "0 printed or written; 1 host error; 2 bad usage.");
  std::string name;
  std::string directory;
  CLI::Option* const named =
      line.app().add_option("COMMAND", name, "The command (default: lethe itself)");
  line.app()
      .add_option("--out", directory, "Write all pages into this directory instead")
      ->excludes(named);
  if (const auto code = line.parse(argc, argv)) return *code;
  if (!directory.empty()) {
    const auto written = write_pages(directory);
    if (written) return 0;
    print_error(written.error().text);
    return exit_code_of(written.error().kind);
  }
  if (named->count() == 0) {
    std::fputs(man_page_of_all(all_texts()).c_str(), stdout);
    return 0;
  }
  std::vector<std::string_view> names;
  for (const Command& command : commands()) {
    names.emplace_back(command.name);
    if (name != command.name) continue;
    std::fputs(man_page(describe(command)).c_str(), stdout);
    return 0;
  }
  print_error(fmt::format("man: '{}' is no command{}", printable(name), did_you_mean(name, names)));
  return kExitUsage;
}

}  // namespace lethe
