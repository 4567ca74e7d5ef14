#include "base/assert.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace lethe {

void assertion_failed(const char* expression, const char* file, int line) noexcept {
  // No allocation and no logger: either may be what is broken.
  dprintf(STDERR_FILENO, "lethe: bug: %s:%d: assertion failed: %s\n", file, line, expression);
  std::abort();
}

}  // namespace lethe
