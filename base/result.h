// Result<T>: how host-side operations report failure. [[nodiscard]], no exceptions across modules.
//
// An Error carries a class, from which `lethe` derives its exit code, and one line of text that
// names the thing that failed and the way out.
#pragma once

#include <fmt/core.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace lethe {

enum class ErrorClass : uint8_t {
  kHost,    // the host refused something: file, memory, ioctl
  kConfig,  // the config file or the command line is wrong
  kKvm,     // /dev/kvm is missing, not permitted, or lacks a capability
};

struct Error {
  ErrorClass kind = ErrorClass::kHost;
  std::string text;  // one line, no trailing newline
};

template <typename T = void>
using Result = tl::expected<T, Error>;

using Unexpected = tl::unexpected<Error>;

template <typename... Args>
[[nodiscard]] Unexpected host_error(fmt::format_string<Args...> format, Args&&... args) {
  return Unexpected(Error{ErrorClass::kHost, fmt::format(format, std::forward<Args>(args)...)});
}

template <typename... Args>
[[nodiscard]] Unexpected config_error(fmt::format_string<Args...> format, Args&&... args) {
  return Unexpected(Error{ErrorClass::kConfig, fmt::format(format, std::forward<Args>(args)...)});
}

// The text of an errno value, thread safe. `errno_text(errno)`.
[[nodiscard]] std::string errno_text(int error);

// Returns the error to the caller, or goes on. `LETHE_TRY(do_it());`
#define LETHE_TRY(expression)                                      \
  do {                                                             \
    if (auto lethe_result = (expression); !lethe_result)           \
      return ::lethe::Unexpected(std::move(lethe_result).error()); \
  } while (false)

#define LETHE_CONCAT_INNER(a, b) a##b
#define LETHE_CONCAT(a, b) LETHE_CONCAT_INNER(a, b)
#define LETHE_TRY_ASSIGN_INNER(temporary, target, expression)               \
  auto temporary = (expression);                                            \
  if (!temporary) return ::lethe::Unexpected(std::move(temporary).error()); \
  target = std::move(*temporary)

// Returns the error to the caller, or assigns the value.
// `LETHE_TRY_ASSIGN(auto file, open_file(path));`
#define LETHE_TRY_ASSIGN(target, expression) \
  LETHE_TRY_ASSIGN_INNER(LETHE_CONCAT(lethe_result_, __LINE__), target, expression)

}  // namespace lethe
