#include "vmm/check/screen_steps.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>

#include "base/result.h"
#include "vmm/api/http_server.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

std::string list_of(std::span<const uint32_t> numbers) {
  return fmt::format("[{}]", fmt::join(numbers, ","));
}

std::string absolute(const std::string& path) {
  std::error_code error;
  const auto result = std::filesystem::absolute(path, error);
  return error ? path : result.string();
}

std::string action_of(const ScreenStep& step) {
  if (!step.wait_image.empty()) {
    std::string masks;
    for (const auto& mask : step.masks) masks += (masks.empty() ? "" : ",") + list_of(mask);
    return fmt::format(R"("wait_image":{},"tolerance":{},"max_different":{},"masks":[{}])",
                       json_quote(absolute(step.wait_image)), step.tolerance, step.max_different,
                       masks);
  }
  if (!step.wait_text.empty()) return "\"wait_text\":" + json_quote(step.wait_text);
  if (!step.type.empty()) return "\"type\":" + json_quote(step.type);
  if (!step.click.empty())
    return fmt::format(R"("click":{},"button":"{}")", list_of(step.click),
                       kMouseButtons[step.button]);
  if (!step.resize.empty()) return "\"resize\":" + list_of(step.resize);
  if (step.close) return "\"close\":true";
  if (step.wait_gone) return "\"wait_gone\":true";
  if (!step.shot.empty()) return "\"shot\":" + json_quote(step.shot);
  std::string keys;
  for (const std::string& key : step.keys) keys += (keys.empty() ? "" : ",") + json_quote(key);
  return fmt::format("\"keys\":[{}]", keys);
}

}  // namespace

std::string steps_json(std::span<const ScreenStep> steps, double timeout_scale) {
  constexpr double kTimeoutMax = 86'400'000;  // lethe-shot's
  std::string text = "{\"steps\":[";
  const char* separator = "\n";
  for (const ScreenStep& step : steps) {
    const double timeout = std::min(std::ceil(step.timeout_ms * timeout_scale), kTimeoutMax);
    text += fmt::format("{}{{{},\"surface\":{},\"timeout_ms\":{:.0f}}}", separator, action_of(step),
                        json_quote(step.surface), timeout);
    separator = ",\n";
  }
  return text + "\n]}\n";
}

std::vector<std::string> missing_images(std::span<const ScreenStep> steps,
                                        const std::string& file) {
  std::vector<std::string> missing;
  for (const ScreenStep& step : steps)
    if (!step.wait_image.empty() && ::access(step.wait_image.c_str(), R_OK) != 0)
      missing.push_back(fmt::format("{}: key 'check.screen.wait_image': '{}': {}", printable(file),
                                    printable(step.wait_image), errno_text(errno)));
  return missing;
}

}  // namespace lethe
