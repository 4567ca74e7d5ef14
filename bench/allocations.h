// Counts what a benchmark allocates. Linked, by bench/allocations.cc, into those that use it: it
// replaces operator new.
#pragma once

#include <cstdint>

namespace lethe {

// Calls of operator new by this thread so far.
[[nodiscard]] uint64_t allocations();

}  // namespace lethe
