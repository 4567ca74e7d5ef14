#include <malloc.h>

#include "vmm/cli/cli.h"

int main(int argc, char** argv) {
  // One heap for all threads: they allocate little, and another heap costs each thread's first
  // allocation four system calls and a few pages.
  (void)::mallopt(M_ARENA_MAX, 1);
  return lethe::cli_main(argc, argv);
}
