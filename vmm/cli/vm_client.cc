#include "vmm/cli/vm_client.h"

#include <fmt/format.h>

#include <array>
#include <boost/json/parse.hpp>
#include <cmath>
#include <utility>

#include "vmm/config_schema.h"

namespace lethe {
namespace json = boost::json;

Result<std::string> get_text(const RunningVm& vm, std::string_view path,
                             std::chrono::milliseconds patience) {
  const auto answer = http_request(
      {.socket = vm.path + "/" + kApiSocketName, .path = std::string(path), .patience = patience});
  if (!answer) return host_error("'{}' (process {}): {}", vm.name, vm.pid, answer.error().text);
  if (answer->status != 200) return host_error("'{}': {}", vm.name, error_in(*answer));
  return answer->body;
}

Result<json::value> parse_answer(const RunningVm& vm, std::string_view text) {
  json::error_code error;
  json::value value = json::parse(json::string_view(text.data(), text.size()), error);
  if (error) return host_error("'{}' answers with what is no JSON: {}", vm.name, error.message());
  return value;
}

Result<json::value> get_json(const RunningVm& vm, std::string_view path,
                             std::chrono::milliseconds patience) {
  LETHE_TRY_ASSIGN(const std::string text, get_text(vm, path, patience));
  return parse_answer(vm, text);
}

std::string error_in(const ClientAnswer& answer) {
  json::error_code ignored;
  const json::value value = json::parse(json::string_view(answer.body), ignored);
  if (const std::string text = text_at(value, "error"); !text.empty()) return printable(text);
  return fmt::format("HTTP status {}", answer.status);
}

const json::value* find_path(const json::value& root, std::string_view path) {
  const json::value* at = &root;
  while (!path.empty()) {
    const size_t dot = path.find('.');
    const std::string_view key = path.substr(0, dot);
    path = dot == std::string_view::npos ? std::string_view() : path.substr(dot + 1);
    if (!at->is_object()) return nullptr;
    at = at->get_object().if_contains(json::string_view(key.data(), key.size()));
    if (at == nullptr) return nullptr;
  }
  return at;
}

namespace {

std::optional<double> number_of(const json::value& value) {
  if (value.is_uint64()) return static_cast<double>(value.get_uint64());
  if (value.is_int64()) return static_cast<double>(value.get_int64());
  if (value.is_double()) return value.get_double();
  return std::nullopt;
}

std::optional<double> sum_of(const json::value& value) {
  if (!value.is_object()) return number_of(value);
  std::optional<double> sum;
  for (const auto& [key, part] : value.get_object())
    if (const auto number = sum_of(part)) sum = sum.value_or(0) + *number;
  return sum;
}

}  // namespace

std::optional<double> number_at(const json::value& root, std::string_view path) {
  const json::value* const value = find_path(root, path);
  return value == nullptr ? std::nullopt : number_of(*value);
}

std::optional<double> sum_at(const json::value& root, std::string_view path) {
  const json::value* const value = find_path(root, path);
  return value == nullptr ? std::nullopt : sum_of(*value);
}

std::string text_at(const json::value& root, std::string_view path) {
  const json::value* const value = find_path(root, path);
  if (value == nullptr || !value->is_string()) return {};
  return std::string(value->get_string());
}

std::string human_bytes(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (std::fabs(bytes) >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  if (bytes == 0) return "0";
  const bool whole = unit == 0 || std::fabs(bytes - std::round(bytes)) < 0.05;
  return fmt::format("{:.{}f} {}", bytes, whole ? 0 : 1, kUnits[unit]);
}

std::string human_duration(double seconds) {
  if (seconds <= 0) return "0";
  if (seconds < 1e-6) return fmt::format("{:.0f} ns", seconds * 1e9);
  if (seconds < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.1f} ms", seconds * 1e3);
  return fmt::format("{:.1f} s", seconds);
}

std::string human_uptime(double seconds) {
  const auto whole = static_cast<uint64_t>(std::max(seconds, 0.0));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
  return fmt::format("{} d {} h", whole / 86400, whole / 3600 % 24);
}

}  // namespace lethe
