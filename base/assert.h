// LETHE_ASSERT: for programmer errors only, on in every build. What a guest, a frontend or the host
// can cause is never an assertion: it is a status, a counter or a Result.
#pragma once

namespace lethe {

[[noreturn]] void assertion_failed(const char* expression, const char* file, int line) noexcept;

}  // namespace lethe

#define LETHE_ASSERT(expression) \
  ((expression) ? static_cast<void>(0) : ::lethe::assertion_failed(#expression, __FILE__, __LINE__))
