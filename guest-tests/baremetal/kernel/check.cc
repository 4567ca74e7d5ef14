#include "kernel/check.h"

#include "kernel/cpu.h"

namespace kernel {

void debug_exit(uint8_t value) {
  out8(kDebugExitPort, value);
  halt_forever();
}

void check_failed(const char* file, int line, const char* what) {
  print("FAILED %s:%d: %s\n", file, line, what);
  debug_exit(kExitCheckFailed);
}

void check_eq_failed(const char* file, int line, const char* what, uint64_t left, uint64_t right) {
  print("FAILED %s:%d: %s: %lu (0x%lx) is not %lu (0x%lx)\n", file, line, what, left, left, right,
        right);
  debug_exit(kExitCheckFailed);
}

}  // namespace kernel
