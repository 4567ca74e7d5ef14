// How a guest ends. A failed CHECK prints one line and ends the VM with debug-exit value 1.
#pragma once

#include <stdint.h>

#include "kernel/print.h"

namespace kernel {

inline constexpr uint16_t kDebugExitPort = 0xf4;
inline constexpr uint8_t kExitOk = 0;
inline constexpr uint8_t kExitCheckFailed = 1;
// An exception nobody expected: 40 + the vector (vectors below 22).
inline constexpr uint8_t kExitException = 40;

[[noreturn]] void debug_exit(uint8_t value);
[[noreturn]] void check_failed(const char* file, int line, const char* what);
[[noreturn]] void check_eq_failed(const char* file, int line, const char* what, uint64_t left,
                                  uint64_t right);

}  // namespace kernel

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) ::kernel::check_failed(__FILE_NAME__, __LINE__, #condition); \
  } while (false)

// Compares as unsigned 64-bit numbers and prints both when they differ.
#define CHECK_EQ(left, right)                                                              \
  do {                                                                                     \
    const auto left_value_ = static_cast<uint64_t>(left);                                  \
    const auto right_value_ = static_cast<uint64_t>(right);                                \
    if (left_value_ != right_value_)                                                       \
      ::kernel::check_eq_failed(__FILE_NAME__, __LINE__, #left " == " #right, left_value_, \
                                right_value_);                                             \
  } while (false)
