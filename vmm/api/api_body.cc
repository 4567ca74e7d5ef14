#include "vmm/api/api_body.h"

#include <fmt/format.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "base/assert.h"
#include "vmm/config_schema.h"
#include "vmm/suggest.h"

namespace lethe {
namespace json = boost::json;

void ApiCall::answer(const json::object& object, unsigned status) const {
  reply->send({.status = status, .body = json::serialize(object) + "\n"});
}

void ApiCall::refuse(unsigned status, std::string_view text) const {
  reply->send(http_error(status, text));
}

tl::expected<json::object, HttpAnswer> parse_body(const HttpRequest& request) {
  json::error_code error;
  json::parse_options options;
  options.max_depth = 4;
  const json::value value = json::parse(json::string_view(request.body), error, {}, options);
  if (error)
    return tl::unexpected(http_error(400, fmt::format("the body is no JSON: {}", error.message())));
  if (!value.is_object())
    return tl::unexpected(http_error(400, "the body must be a JSON object, such as {}"));
  return value.get_object();
}

tl::expected<void, HttpAnswer> expect_no_body(const HttpRequest& request) {
  if (request.body.empty()) return {};
  const auto object = parse_body(request);
  if (!object) return tl::unexpected(object.error());
  if (!object->empty()) return tl::unexpected(http_error(400, "the body must be empty, or {}"));
  return {};
}

tl::unexpected<std::string> wrong(std::string_view key, std::string_view rule) {
  return tl::unexpected(fmt::format("'{}' must be {}", key, rule));
}

tl::unexpected<std::string> unknown_key(std::string_view key,
                                        std::span<const std::string_view> known) {
  return tl::unexpected(
      fmt::format("'{}' can't be set{}", printable(key), did_you_mean(key, known)));
}

tl::expected<uint64_t, std::string> bytes_of(std::string_view key, const json::value& value) {
  if (value.is_uint64()) return value.get_uint64();
  if (value.is_int64() && value.get_int64() >= 0) return static_cast<uint64_t>(value.get_int64());
  if (value.is_string())
    if (const auto bytes = parse_size(std::string_view(value.get_string()))) return *bytes;
  return wrong(key, "a number of bytes, or a size in quotes such as \"512M\"");
}

tl::expected<uint64_t, std::string> config_number(std::string_view section, std::string_view name,
                                                  const json::value& value) {
  const ConfigKey* const key = find_config_key(section, name);
  LETHE_ASSERT(key != nullptr);
  const auto number = bytes_of(name, value);
  const bool plain = key->type != KeyType::kSize && value.is_string();
  if (plain || !number || *number < key->min || *number > key->max)
    return wrong(name, expectation(*key));
  return number;
}

}  // namespace lethe
