#include "base/descriptor_limit.h"

#include <sys/resource.h>

#include "base/log.h"

namespace lethe {

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &limit) == 0) return;
    log_info(LogModule::kVmm, "the limit of descriptors stays: {}", errno_text(errno));
  }
}

}  // namespace lethe
