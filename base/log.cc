// The only file that sees spdlog. Debian ships spdlog and fmt as shared libraries only; both are
// compiled in here header-only, since `lethe` is linked statically (base/fmt_impl.cc).
#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/ansicolor_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <optional>
#include <string>

#include "base/file_bytes.h"
#include "base/mutex.h"

namespace lethe {
namespace {

constexpr std::array<std::string_view, kLogModules> kModuleNames = {
    "vmm", "memory", "virtio", "pci", "block", "console", "rng", "legacy", "gui", "vsock", "net"};
constexpr std::array<std::string_view, 6> kLevelNames = {"trace", "debug", "info",
                                                         "warn",  "error", "off"};
constexpr std::array<spdlog::level::level_enum, 6> kSpdlogLevels = {
    spdlog::level::trace, spdlog::level::debug, spdlog::level::info,
    spdlog::level::warn,  spdlog::level::err,   spdlog::level::off};

std::array<std::atomic<LogLevel>, kLogModules>& levels() {
  static std::array<std::atomic<LogLevel>, kLogModules> levels = {
      LogLevel::kWarn, LogLevel::kWarn, LogLevel::kWarn, LogLevel::kWarn,
      LogLevel::kWarn, LogLevel::kWarn, LogLevel::kWarn, LogLevel::kWarn,
      LogLevel::kWarn, LogLevel::kWarn, LogLevel::kWarn};
  return levels;
}

spdlog::sinks::sink& sink() {
  // Colour only on terminals: automatic. Never destroyed: threads may log while the process ends.
  static auto* sink = [] {
    auto* made = new spdlog::sinks::ansicolor_stderr_sink_mt(spdlog::color_mode::automatic);
    made->set_formatter(std::make_unique<spdlog::pattern_formatter>("lethe: %^%l%$: %n: %v"));
    made->set_level(spdlog::level::trace);
    return made;
  }();
  return *sink;
}

std::atomic<size_t>& log_bytes_max() {
  static std::atomic<size_t> bytes_max = 0;
  return bytes_max;
}

Mutex& cut_mutex() {
  static Mutex mutex;
  return mutex;
}

template <size_t N>
std::optional<size_t> index_of(const std::array<std::string_view, N>& names,
                               std::string_view name) {
  for (size_t i = 0; i < N; ++i)
    if (names[i] == name) return i;
  return std::nullopt;
}

}  // namespace

bool log_enabled(LogModule module, LogLevel level) {
  return level >= levels()[static_cast<size_t>(module)].load(std::memory_order_relaxed);
}

void log_line(LogModule module, LogLevel level, std::string_view line) {
  const std::string_view name = kModuleNames[static_cast<size_t>(module)];
  sink().log(spdlog::details::log_msg(spdlog::string_view_t(name.data(), name.size()),
                                      kSpdlogLevels[static_cast<size_t>(level)],
                                      spdlog::string_view_t(line.data(), line.size())));
  sink().flush();
  if (const size_t bytes_max = log_bytes_max().load(std::memory_order_relaxed); bytes_max > 0) {
    // Nobody is left to be told that it failed.
    const MutexLock lock(cut_mutex());
    (void)cut_file(STDERR_FILENO, bytes_max);
  }
}

void set_log_bytes_max(size_t bytes_max) {
  log_bytes_max().store(bytes_max, std::memory_order_relaxed);
}

void vlog(LogModule module, LogLevel level, fmt::string_view format, fmt::format_args args) {
  log_line(module, level, fmt::vformat(format, args));
}

Result<> set_log_levels(std::string_view spec) {
  std::array<std::optional<LogLevel>, kLogModules> wanted;
  while (!spec.empty()) {
    const std::string_view item = spec.substr(0, spec.find(','));
    spec.remove_prefix(std::min(spec.size(), item.size() + 1));
    const size_t equals = item.find('=');
    const std::string_view level_name =
        equals == std::string_view::npos ? item : item.substr(equals + 1);
    const auto level = index_of(kLevelNames, level_name);
    if (!level)
      return config_error("log level '{}' is not known: use trace, debug, info, warn, error or off",
                          level_name);
    if (equals == std::string_view::npos) {
      wanted.fill(static_cast<LogLevel>(*level));
      continue;
    }
    const auto module = index_of(kModuleNames, item.substr(0, equals));
    if (!module)
      return config_error(
          "log module '{}' is not known: use vmm, memory, virtio, pci, block, console, rng, "
          "legacy, gui, vsock or net",
          item.substr(0, equals));
    wanted[*module] = static_cast<LogLevel>(*level);
  }
  for (size_t i = 0; i < wanted.size(); ++i)
    if (wanted[i]) levels()[i].store(*wanted[i], std::memory_order_relaxed);
  return {};
}

std::string log_levels() {
  std::string text;
  for (size_t i = 0; i < kModuleNames.size(); ++i) {
    const LogLevel level = levels()[i].load(std::memory_order_relaxed);
    text += fmt::format("{}{}={}", i == 0 ? "" : ",", kModuleNames[i],
                        kLevelNames[static_cast<size_t>(level)]);
  }
  return text;
}

bool LogLimiter::admit(uint64_t& suppressed) {
  const int64_t now_ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                             std::chrono::steady_clock::now().time_since_epoch())
                             .count();
  if (x_burst_left.fetch_sub(1, std::memory_order_relaxed) > 0) {
    x_tokens_at_ms.store(now_ms, std::memory_order_relaxed);
    suppressed = 0;
    return true;
  }
  x_burst_left.store(0, std::memory_order_relaxed);
  int64_t last_ms = x_tokens_at_ms.load(std::memory_order_relaxed);
  if (now_ms - last_ms < kPeriod.count() ||
      !x_tokens_at_ms.compare_exchange_strong(last_ms, now_ms, std::memory_order_relaxed)) {
    x_suppressed.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  suppressed = x_suppressed.exchange(0, std::memory_order_relaxed);
  return true;
}

}  // namespace lethe
