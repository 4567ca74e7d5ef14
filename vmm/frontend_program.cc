#include "vmm/frontend_program.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdlib>
#include <string_view>

#include "vmm/find_program.h"

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
  if (std::string found = find_program(program); !found.empty()) return found;
  return host_error(
      "'{0}' is not there: build it (./dev build), and put it beside lethe{1} or "
      "into PATH",
      program, directory.empty() ? "" : " in " + directory);
}

}  // namespace lethe
