#include "vmm/frontend_program.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdlib>
#include <string_view>

namespace lethe {
namespace {

// "/usr/bin/", or empty.
std::string own_directory() {
  std::array<char, PATH_MAX> path{};
  const ssize_t size = ::readlink("/proc/self/exe", path.data(), path.size());
  if (size <= 0) return {};
  const std::string_view own(path.data(), static_cast<size_t>(size));
  return std::string(own.substr(0, own.rfind('/') + 1));
}

}  // namespace

Result<std::string> find_frontend(const std::string& program) {
  const std::string directory = own_directory();
  if (!directory.empty() && ::access((directory + program).c_str(), X_OK) == 0)
    return directory + program;
  const char* const path = std::getenv("PATH");
  std::string_view left = path == nullptr ? "" : path;
  while (!left.empty()) {
    const std::string_view part = left.substr(0, left.find(':'));
    left.remove_prefix(std::min(left.size(), part.size() + 1));
    // An empty or relative part would be a place that others choose.
    if (!part.starts_with('/')) continue;
    const std::string candidate = std::string(part) + "/" + program;
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return host_error(
      "'{0}' is not there: build it (./dev build), and put it beside lethe{1} or "
      "into PATH",
      program, directory.empty() ? "" : " in " + directory);
}

}  // namespace lethe
