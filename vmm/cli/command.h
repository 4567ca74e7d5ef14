// What a command of `lethe` is made of. Each builds its own small option parser when it runs, and
// not before: `lethe run` must not pay for the others.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "vmm/check/check.h"
#include "vmm/config.h"
#include "vmm/doctor.h"
#include "vmm/run.h"

namespace lethe {

// A parser for `lethe COMMAND`, with help and examples.
class CommandLine {
 public:
  CommandLine(const char* command, const char* description, const char* examples);
  // Parses the words after the command. Returns an exit code when the command is at its end
  // already: help was asked for (0), or the words are wrong (kExitUsage, one line on stderr).
  [[nodiscard]] std::optional<int> parse(int argc, char** argv);
  [[nodiscard]] CLI::App& app() { return x_app; }

 private:
  [[nodiscard]] std::string explain(const CLI::ParseError& error);
  std::string x_command;
  CLI::App x_app;
};

// For CLI::Option::check(); CLI::Range lets "nan" pass.
[[nodiscard]] CLI::Validator number_between(double min, double max);

// argv[0] is the command's own name.
int command_run(int argc, char** argv);
int command_validate(int argc, char** argv);
int command_doctor(int argc, char** argv);
int command_check(int argc, char** argv);
int command_stats(int argc, char** argv);
int command_top(int argc, char** argv);
int command_reclaim(int argc, char** argv);
int command_snapshot(int argc, char** argv);
int command_restore(int argc, char** argv);
int command_attach(int argc, char** argv);
int command_vnc(int argc, char** argv);
int command_shot(int argc, char** argv);
int command_image(int argc, char** argv);
int command_version(int argc, char** argv);

}  // namespace lethe
