// The frontends (lethe-view, lethe-vnc, lethe-shot) are programs of their own.
#pragma once

#include <string>

#include "base/result.h"

namespace lethe {

// The path of the program: beside this one, else in PATH. The error (kHost) says the way out.
[[nodiscard]] Result<std::string> find_frontend(const std::string& program);

}  // namespace lethe
