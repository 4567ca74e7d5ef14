// lethe-agent's log: lines on stderr, which the unit's journal keeps.
#pragma once

#include <fmt/core.h>

#include <cstdio>
#include <utility>

namespace lethe::agent {

template <typename... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
  const std::string line = fmt::format(format, std::forward<Args>(args)...);
  std::fprintf(stderr, "lethe-agent: %s\n", line.c_str());
}

}  // namespace lethe::agent
