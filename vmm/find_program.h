// Where the programs are that Lethe starts: passt, frontends, those that make images.
#pragma once

#include <string>
#include <string_view>

namespace lethe {

// The first executable `name` in the directories of `path`, which ':' parts; empty: there is none.
// Empty and relative parts are passed over: they would be places that others choose. Main thread.
[[nodiscard]] std::string find_program(const std::string& name, std::string_view path);
// The same in $PATH.
[[nodiscard]] std::string find_program(const std::string& name);

}  // namespace lethe
