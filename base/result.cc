#include "base/result.h"

#include <cstring>

namespace lethe {

std::string errno_text(int error) {
  char buffer[128];
  return strerror_r(error, buffer, sizeof buffer);  // the GNU variant
}

}  // namespace lethe
