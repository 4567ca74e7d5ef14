// Logging by module and level, to stderr. Any thread.
//
// `log_warn(LogModule::kBlock, "{}: short read", path);` Guest-caused lines go through
// LETHE_LOG_LIMITED, so that a hostile guest can't flood the log.
#pragma once

#include <fmt/core.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace lethe {

enum class LogLevel : uint8_t { kTrace, kDebug, kInfo, kWarn, kError, kOff };
enum class LogModule : uint8_t {
  kVmm,
  kMemory,
  kVirtio,
  kPci,
  kBlock,
  kConsole,
  kRng,
  kLegacy,
  kGui,
  kVsock,
  kNet
};
inline constexpr int kLogModules = 11;

// Sets the level of every module, or of one. `spec` is "LEVEL" or "MODULE=LEVEL,...", for example
// "info" or "warn,block=debug". Default: warn. Error: names the unknown word and the valid ones.
[[nodiscard]] Result<> set_log_levels(std::string_view spec);
// All levels as they are now, as such a spec: "vmm=warn,memory=warn,...".
[[nodiscard]] std::string log_levels();

// Standard error is a regular file, opened to append: of more than `bytes_max` the older half goes
// (base/file_bytes.h). 0, the default: it is not bounded. Only log lines look at its size.
void set_log_bytes_max(size_t bytes_max);

[[nodiscard]] bool log_enabled(LogModule module, LogLevel level);
void log_line(LogModule module, LogLevel level, std::string_view line);
void vlog(LogModule module, LogLevel level, fmt::string_view format, fmt::format_args args);

template <typename... Args>
void log_at(LogModule module, LogLevel level, fmt::format_string<Args...> format,
            const Args&... args) {
  if (log_enabled(module, level)) vlog(module, level, format, fmt::make_format_args(args...));
}
template <typename... Args>
void log_debug(LogModule module, fmt::format_string<Args...> format, const Args&... args) {
  log_at(module, LogLevel::kDebug, format, args...);
}
template <typename... Args>
void log_info(LogModule module, fmt::format_string<Args...> format, const Args&... args) {
  log_at(module, LogLevel::kInfo, format, args...);
}
template <typename... Args>
void log_warn(LogModule module, fmt::format_string<Args...> format, const Args&... args) {
  log_at(module, LogLevel::kWarn, format, args...);
}
template <typename... Args>
void log_error(LogModule module, fmt::format_string<Args...> format, const Args&... args) {
  log_at(module, LogLevel::kError, format, args...);
}

// Lets kBurst lines through, then one each kPeriod. Any thread.
class LogLimiter {
 public:
  static constexpr int64_t kBurst = 10;
  static constexpr std::chrono::milliseconds kPeriod{1000};
  // True if the line may be written; then `suppressed` is how many were not.
  bool admit(uint64_t& suppressed);

 private:
  std::atomic<int64_t> x_tokens_at_ms{0};
  std::atomic<uint64_t> x_suppressed{0};
  std::atomic<int64_t> x_burst_left{kBurst};
};

// A warning that a guest can cause: formatted only if the limiter at this place admits it.
#define LETHE_LOG_LIMITED(module, ...)                                                        \
  do {                                                                                        \
    static ::lethe::LogLimiter lethe_limiter;                                                 \
    if (uint64_t lethe_held = 0; ::lethe::log_enabled(module, ::lethe::LogLevel::kWarn) &&    \
                                 lethe_limiter.admit(lethe_held)) {                           \
      ::lethe::log_warn(module, __VA_ARGS__);                                                 \
      if (lethe_held > 0)                                                                     \
        ::lethe::log_warn(module, "({} lines like the last one were held back)", lethe_held); \
    }                                                                                         \
  } while (false)

}  // namespace lethe
