// Manual pages, made of the commands' own words (vmm/cli/command_text.h): roff, man(7).
#pragma once

#include <span>
#include <string>

#include "vmm/cli/command_text.h"

namespace lethe {

// lethe-COMMAND(1).
[[nodiscard]] std::string man_page(const CommandText& text);
// lethe(1), which lists them all.
[[nodiscard]] std::string man_page_of_all(std::span<const CommandText> commands);

}  // namespace lethe
