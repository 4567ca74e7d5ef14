#include "vmm/run.h"

#include <cstdio>

namespace lethe {

int run_machine(const VmConfig&, const RunOptions&) {
  std::fputs("lethe: running a machine is not built yet\n", stderr);
  return kExitHostError;
}

}  // namespace lethe
