// What a command of `lethe` is made of. Each builds its own small option parser when it runs, and
// not before: `lethe run` must not pay for the others.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <span>
#include <string>

#include "vmm/check/check.h"
#include "vmm/cli/command_text.h"
#include "vmm/config.h"
#include "vmm/doctor.h"
#include "vmm/run.h"

namespace lethe {

// A line of the table of all commands (vmm/cli/cli.cc).
struct Command {
  const char* name;
  const char* summary;
  // argv[0] is the command's own name. Nothing is done before its words are parsed (CommandLine).
  int (*run)(int argc, char** argv);
};
[[nodiscard]] std::span<const Command> commands();

// The command in words.
[[nodiscard]] CommandText describe(const Command& command);

// A parser for `lethe COMMAND`, with help and examples.
class CommandLine {
 public:
  // `examples`: whole lines, indented by two; a # starts a remark. `exits`: "0 done; 1 not; ...".
  CommandLine(const char* command, const char* description, const char* examples,
              const char* exits = "");
  // Parses the words after the command. Returns an exit code when the command is at its end
  // already: help was asked for (0), or the words are wrong (kExitUsage, one line on stderr).
  [[nodiscard]] std::optional<int> parse(int argc, char** argv);
  [[nodiscard]] CLI::App& app() { return x_app; }

 private:
  friend CommandText describe(const Command& command);
  [[nodiscard]] std::string explain(const CLI::ParseError& error);
  void describe_to(CommandText& text) const;

  // Not null while a command is described: parse() fills it in, and ends the command.
  static CommandText* described;

  const std::string x_command;
  const std::string x_description;
  const std::string x_examples;
  const std::string x_exits;
  CLI::App x_app;
};

// What the commands that start a VM take. `log` is for set_log_levels().
struct StartOptions {
  std::string log;
  bool detached = false;
};
void add_start_options(CLI::App& app, StartOptions& start, RunOptions& options);

// For CLI::Option::check(); CLI::Range lets "nan" pass.
[[nodiscard]] CLI::Validator number_between(double min, double max);

int command_attach(int argc, char** argv);
int command_check(int argc, char** argv);
int command_completion(int argc, char** argv);
int command_console(int argc, char** argv);
int command_doctor(int argc, char** argv);
int command_exec(int argc, char** argv);
int command_image(int argc, char** argv);
int command_kill(int argc, char** argv);
int command_log(int argc, char** argv);
int command_man(int argc, char** argv);
int command_pause(int argc, char** argv);
int command_ps(int argc, char** argv);
int command_reclaim(int argc, char** argv);
int command_restore(int argc, char** argv);
int command_resume(int argc, char** argv);
int command_run(int argc, char** argv);
int command_shot(int argc, char** argv);
int command_snapshot(int argc, char** argv);
int command_stats(int argc, char** argv);
int command_stop(int argc, char** argv);
int command_top(int argc, char** argv);
int command_validate(int argc, char** argv);
int command_version(int argc, char** argv);
int command_vnc(int argc, char** argv);

}  // namespace lethe
