// Overwriting memory without filling the cache with it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lethe {

// Sets every 4 bytes of [at, at + size) to `value` with non-temporal stores. `at` is 64-byte
// aligned and `size` a multiple of 64 (else a programmer error). When it returns the stores are
// ordered before any later store of this thread: a release store publishes them.
void scrub(uint8_t* at, size_t size, uint32_t value);

}  // namespace lethe
