#include "vmm/cli/cli.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <new>

#include "vmm/cli/command.h"
#include "vmm/config_schema.h"
#include "vmm/suggest.h"

namespace lethe {
namespace {

// In the order of the help: one VM's life, then looking at it, then what needs none.
constexpr auto kCommands = std::to_array<Command>({
    {"run", "run a VM to its end, or detached", command_run},
    {"ps", "list the VMs that run", command_ps},
    {"console", "connect this terminal to a running VM's console", command_console},
    {"log", "show what a VM's console printed last", command_log},
    {"exec", "run a command in a running guest", command_exec},
    {"attach", "show a running VM's screen and windows on this desktop", command_attach},
    {"vnc", "serve a running VM's screen to VNC clients and browsers", command_vnc},
    {"shot", "write a picture of a running VM's screen", command_shot},
    {"stop", "press VMs' power buttons and wait for their end", command_stop},
    {"kill", "end VMs by force", command_kill},
    {"pause", "stop VMs' processors for a while", command_pause},
    {"resume", "let paused VMs go on", command_resume},
    {"stats", "show what a running VM counts", command_stats},
    {"top", "show all running VMs, live", command_top},
    {"snapshot", "save a running VM as a directory", command_snapshot},
    {"restore", "run a VM on from a snapshot", command_restore},
    {"reclaim", "pull free memory out of a running guest", command_reclaim},
    {"validate", "check a config and the files it names", command_validate},
    {"check", "boot guests from configs and check what they do", command_check},
    {"image", "make a disk image with a Debian that boots as a guest", command_image},
    {"doctor", "find out whether this host can run VMs, and how fast", command_doctor},
    {"completion", "print a shell's completions of these commands", command_completion},
    {"man", "print a command's manual page", command_man},
    {"version", "print the version", command_version},
});

void print_help() {
  std::string text =
      "lethe: a virtual machine monitor for many isolated VMs on one host\n\n"
      "Usage: lethe COMMAND [OPTIONS]\n\nCommands:\n";
  for (const Command& command : kCommands)
    text += fmt::format("  {:<10} {}\n", command.name, command.summary);
  text +=
      "\n`lethe COMMAND --help` tells more.\n\n"
      "Examples:\n"
      "  lethe doctor\n"
      "  lethe run configs/linux.toml\n"
      "  lethe run -d web.toml && lethe console web\n"
      "  lethe check guests/*.toml --junit out.xml\n";
  std::fputs(text.c_str(), stdout);
}

// With 0, 1 or 2 closed, the next file opened would get the number, and our messages.
void keep_standard_fds() {
  for (int fd = 0; fd <= 2; ++fd)
    if (::fcntl(fd, F_GETFD) == -1 && ::open("/dev/null", O_RDWR) != fd) std::_Exit(kExitHostError);
}

int unknown_command(std::string_view word) {
  std::array<std::string_view, kCommands.size()> names;
  for (size_t i = 0; i < names.size(); ++i) names[i] = kCommands[i].name;
  print_error(fmt::format("'{}' is no command{} (lethe --help lists them)", printable(word),
                          did_you_mean(word, names)));
  return kExitUsage;
}

int run_command(int argc, char** argv) {
  if (argc < 2) {
    print_error("a command is missing, such as `lethe run CONFIG` (lethe --help lists them)");
    return kExitUsage;
  }
  const std::string_view word = argv[1];
  if (word == "--version" || word == "-V") return command_version(1, argv + 1);
  if (word == "--help" || word == "-h" || word == "help") {
    print_help();
    return 0;
  }
  for (const Command& command : kCommands)
    if (word == command.name) return command.run(argc - 1, argv + 1);
  return unknown_command(word);
}

}  // namespace

std::span<const Command> commands() { return kCommands; }

void print_error(std::string_view line) {
  const std::string text = fmt::format("lethe: {}\n", line);
  std::fflush(stdout);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

int cli_main(int argc, char** argv) {
  keep_standard_fds();
  int code = kExitHostError;
  try {
    code = run_command(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("lethe: the host is out of memory\n", stderr);
    return kExitHostError;
  } catch (const std::exception& error) {
    print_error(fmt::format("unexpected error: {}", printable(error.what())));
    return kExitHostError;
  }
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  print_error(fmt::format("cannot write to standard output: {}", errno_text(errno)));
  return code == 0 ? kExitHostError : code;
}

}  // namespace lethe
