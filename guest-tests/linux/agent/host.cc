#include "guest-tests/linux/agent/host.h"

namespace lethe::agent {

Result<> Commands::flush() {
  if (x_bytes.empty()) return {};
  x_ends.push_back(x_bytes.size());
  size_t begin = 0;
  Result<> result;
  for (const size_t end : x_ends) {
    result = x_host.submit(std::span(x_bytes).subspan(begin, end - begin));
    if (!result) break;
    begin = end;
  }
  x_bytes.clear();
  x_ends.clear();
  return result;
}

}  // namespace lethe::agent
