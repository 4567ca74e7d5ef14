// For tests.
#pragma once

#include <chrono>
#include <thread>

namespace lethe {

// Whether `condition` came true within `patience`; looks each millisecond.
template <typename Condition>
bool eventually(Condition&& condition,
                std::chrono::milliseconds patience = std::chrono::milliseconds(10'000)) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// UBSan looks at an object of a type that it has not seen by way of a pipe, and takes it for
// damaged where it gets none: tests that are short of descriptors can't run under it.
#if defined(__has_feature)
#if __has_feature(undefined_behavior_sanitizer)
inline constexpr bool kUnderUbsan = true;
#else
inline constexpr bool kUnderUbsan = false;
#endif
#else
inline constexpr bool kUnderUbsan = false;
#endif
#define LETHE_SKIP_UNDER_UBSAN()                                                               \
  if (::lethe::kUnderUbsan)                                                                    \
  GTEST_SKIP() << "SKIPPED: UBSan itself needs the descriptors that this test takes away; it " \
                  "runs under the other presets"

}  // namespace lethe
