// Shells' completions, made of the commands' own words (vmm/cli/command_text.h): commands, options,
// and names of the VMs that run, which they get from `lethe ps --quiet`.
#pragma once

#include <span>
#include <string>

#include "vmm/cli/command_text.h"

namespace lethe {

[[nodiscard]] std::string bash_completion(std::span<const CommandText> commands);
[[nodiscard]] std::string zsh_completion(std::span<const CommandText> commands);
[[nodiscard]] std::string fish_completion(std::span<const CommandText> commands);

}  // namespace lethe
