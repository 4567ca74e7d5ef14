// One ELF holds many cases; the command line picks: test=NAME[,NAME...], or test=all.
#pragma once

#include <stddef.h>

namespace kernel {

struct Case {
  const char* name;
  void (*run)();
  // Left out of test=all: it ends the VM by itself, or needs a machine of its own.
  bool alone = false;
};

// Prints `ok GUEST/NAME` after each. An unknown name fails a check.
void run_cases(const char* guest, const Case* cases, size_t count);

template <size_t N>
void run_cases(const char* guest, const Case (&cases)[N]) {
  run_cases(guest, cases, N);
}

}  // namespace kernel
