#include "guest-tests/linux/exec/request.h"

#include <boost/json/parse.hpp>

#include "vmm/exec/protocol.h"

namespace lethe::exec {
namespace {

namespace json = boost::json;
using Failed = tl::unexpected<std::string>;

constexpr int64_t kTimeoutMax = 86'400'000;
constexpr size_t kDepthMax = 4;  // the request, and lists and objects in it, have 2

// What execve(2) takes ends at a zero.
bool is_text(const json::value& value) {
  return value.is_string() && value.get_string().find('\0') == json::string::npos;
}

std::string text_of(const json::value& value) {
  return {value.get_string().data(), value.get_string().size()};
}

Failed wrong(std::string_view key, const char* right) {
  return Failed("'" + std::string(key) + "' must be " + right);
}

tl::expected<void, std::string> take_run(const json::value& value, Request& request) {
  constexpr const char* kRight = "a list of texts, the first one a program";
  if (!value.is_array() || value.get_array().empty()) return wrong("run", kRight);
  for (const json::value& word : value.get_array()) {
    if (!is_text(word)) return wrong("run", kRight);
    request.run.push_back(text_of(word));
  }
  if (request.run[0].empty()) return wrong("run", kRight);
  return {};
}

tl::expected<void, std::string> take_env(const json::value& value, Request& request) {
  constexpr const char* kRight = "an object of texts";
  if (!value.is_object()) return wrong("env", kRight);
  for (const auto& [name, text] : value.get_object()) {
    const std::string plain(name.data(), name.size());
    if (!is_text(text) || plain.empty() ||
        plain.find_first_of(std::string_view("=\0", 2)) != std::string::npos)
      return wrong("env", kRight);
    request.env.emplace_back(plain, text_of(text));
  }
  return {};
}

tl::expected<void, std::string> take(std::string_view key, const json::value& value,
                                     Request& request) {
  if (key == "run") return take_run(value, request);
  if (key == "env") return take_env(value, request);
  if (key == "version") {
    if (!value.is_int64() || value.get_int64() != kVersion)
      return Failed("this agent speaks version " + std::to_string(kVersion) + " only");
    return {};
  }
  if (key == "cwd") {
    if (!is_text(value)) return wrong(key, "text");
    request.cwd = text_of(value);
    return {};
  }
  if (key == "stdin") {
    if (!value.is_bool()) return wrong(key, "true or false");
    request.takes_stdin = value.get_bool();
    return {};
  }
  if (key == "timeout_ms") {
    if (!value.is_int64() || value.get_int64() < 0 || value.get_int64() > kTimeoutMax)
      return wrong(key, "a whole number from 0 to 86400000");
    request.timeout = std::chrono::milliseconds(value.get_int64());
    return {};
  }
  return Failed("the request has an unknown key");
}

}  // namespace

tl::expected<Request, std::string> parse_request(std::string_view line) {
  json::parse_options options;
  options.max_depth = kDepthMax;
  options.allow_invalid_utf8 = true;  // arguments and paths are bytes
  boost::system::error_code error;
  const json::value value =
      json::parse(json::string_view(line.data(), line.size()), error, {}, options);
  if (error) return Failed("the request is no JSON: " + error.message());
  if (!value.is_object()) return Failed("the request is no JSON object");
  const json::object& object = value.get_object();
  for (const char* key : {"version", "run"})
    if (!object.contains(key)) return Failed("'" + std::string(key) + "' is missing");
  Request request;
  // The version first: what an other one's keys mean is not known.
  if (auto taken = take("version", object.at("version"), request); !taken)
    return Failed(taken.error());
  for (const auto& [key, entry] : object)
    if (auto taken = take({key.data(), key.size()}, entry, request); !taken)
      return Failed(taken.error());
  return request;
}

}  // namespace lethe::exec
