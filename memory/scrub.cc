#include "memory/scrub.h"

#include <immintrin.h>

#define _Bool bool  // glibc's header forgets that C++ has no _Bool
#include <sys/platform/x86.h>
#undef _Bool

#include "base/assert.h"

namespace lethe {
namespace {

// SAFETY (both loops): scrub() checked alignment and size, so each store is aligned and inside.
void scrub_sse2(uint8_t* at, size_t size, uint32_t value) {
  const __m128i pattern = _mm_set1_epi32(static_cast<int>(value));
  for (uint8_t* const end = at + size; at != end; at += 64) {
    auto* const line = reinterpret_cast<__m128i*>(at);
    _mm_stream_si128(line, pattern);
    _mm_stream_si128(line + 1, pattern);
    _mm_stream_si128(line + 2, pattern);
    _mm_stream_si128(line + 3, pattern);
  }
}

__attribute__((target("avx2"))) void scrub_avx2(uint8_t* at, size_t size, uint32_t value) {
  const __m256i pattern = _mm256_set1_epi32(static_cast<int>(value));
  for (uint8_t* const end = at + size; at != end; at += 64) {
    auto* const line = reinterpret_cast<__m256i*>(at);
    _mm256_stream_si256(line, pattern);
    _mm256_stream_si256(line + 1, pattern);
  }
}

}  // namespace

void scrub(uint8_t* at, size_t size, uint32_t value) {
  LETHE_ASSERT(reinterpret_cast<uintptr_t>(at) % 64 == 0 && size % 64 == 0);
  // What libc found at start. __builtin_cpu_supports() would ask the processor once more, in a
  // constructor of every program: ten CPUIDs, which cost 70 us where Lethe is itself in a VM.
  static const bool avx2 = CPU_FEATURE_ACTIVE(AVX2);
  if (avx2) {
    scrub_avx2(at, size, value);
  } else {
    scrub_sse2(at, size, value);
  }
  // SAFETY: non-temporal stores are weakly ordered; the fence puts them before the release store
  // by which the caller hands the memory on (Intel SDM volume 1, 10.4.6.2).
  _mm_sfence();
}

}  // namespace lethe
