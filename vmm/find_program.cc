#include "vmm/find_program.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace lethe {

std::string find_program(const std::string& name, std::string_view path) {
  while (!path.empty()) {
    const std::string_view part = path.substr(0, path.find(':'));
    path.remove_prefix(std::min(path.size(), part.size() + 1));
    if (!part.starts_with('/')) continue;
    std::string candidate = std::string(part) + "/" + name;
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return {};
}

std::string find_program(const std::string& name) {
  const char* const path = std::getenv("PATH");
  return find_program(name, path == nullptr ? "" : path);
}

}  // namespace lethe
