#include "vmm/api/api_body.h"

#include <fmt/format.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "vmm/config_schema.h"

namespace lethe {
namespace json = boost::json;

HttpAnswer json_answer(const json::object& object) {
  return {.body = json::serialize(object) + "\n"};
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

tl::unexpected<std::string> wrong(std::string_view key, std::string_view rule) {
  return tl::unexpected(fmt::format("'{}' must be {}", key, rule));
}

tl::expected<uint64_t, std::string> bytes_of(std::string_view key, const json::value& value) {
  if (value.is_uint64()) return value.get_uint64();
  if (value.is_int64() && value.get_int64() >= 0) return static_cast<uint64_t>(value.get_int64());
  if (value.is_string())
    if (const auto bytes = parse_size(std::string_view(value.get_string()))) return *bytes;
  return wrong(key, "a number of bytes, or a size in quotes such as \"512M\"");
}

}  // namespace lethe
