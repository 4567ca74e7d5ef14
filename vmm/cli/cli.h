// The `lethe` command line: finds the command, parses its options, runs it.
#pragma once

#include <string_view>

namespace lethe {

// The whole program: returns its exit code (vmm/run.h lists them). Errors are one line on stderr.
[[nodiscard]] int cli_main(int argc, char** argv);

// Writes "lethe: LINE" to stderr.
void print_error(std::string_view line);

}  // namespace lethe
