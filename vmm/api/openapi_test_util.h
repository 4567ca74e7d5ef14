// For tests: whether answers of the control API are what docs/openapi.json says. A checker for the
// part of JSON Schema that the file uses; a keyword that it does not know is an error, so that
// nothing is passed over.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace lethe {

class OpenApi {
 public:
  struct Operation {
    std::string path;    // "/disks/{n}"
    std::string method;  // "GET"
    auto operator<=>(const Operation&) const = default;
  };

  explicit OpenApi(const std::string& file) {
    std::ifstream stream(file);
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    x_root = boost::json::parse(text);
  }

  [[nodiscard]] std::vector<Operation> operations() const {
    std::vector<Operation> all;
    for (const auto& [path, methods] : at(x_root, "paths").as_object())
      for (const auto& entry : methods.as_object()) {
        std::string method(entry.key());
        for (char& c : method) c = static_cast<char>(c - 'a' + 'A');
        all.push_back({path, method});
      }
    std::ranges::sort(all);
    return all;
  }

  [[nodiscard]] std::set<std::string> event_names() const {
    std::set<std::string> names;
    const auto& response = *find_response("GET", "/events", 200);
    const auto& stream = at(at(response, "content"), "text/event-stream");
    for (const auto& entry : at(stream, "x-events").as_object()) names.emplace(entry.key());
    return names;
  }

  // Empty if the answer is right, else what is wrong. What is no operation is to get an Error.
  [[nodiscard]] std::string check_answer(std::string_view method, std::string_view path,
                                         unsigned status, std::string_view type,
                                         std::string_view body) const {
    const boost::json::value* response = find_response(method, path, status);
    if (response == nullptr && may_be_anywhere(status))
      response = &at(at(at(x_root, "components"), "responses"), "Error");
    if (response == nullptr) return fmt::format("status {} is not in the document", status);
    const auto& content = at(resolve(*response), "content").as_object();
    const std::string_view media = type.substr(0, type.find(';'));
    const boost::json::value* const described = content.if_contains(media);
    if (described == nullptr) return fmt::format("type '{}' is not in the document", type);
    const auto& schema = at(*described, "schema");
    if (media == "application/x-ndjson") return check_lines(schema, body);
    if (media == "text/event-stream") return check_events(at(*described, "x-events"), body);
    if (media != "application/json") return body.empty() ? "no body" : "";
    return check_text(schema, body);
  }

  // The same of a request's body that was accepted.
  [[nodiscard]] std::string check_request(std::string_view method, std::string_view path,
                                          std::string_view body) const {
    const boost::json::value* const operation = find_operation(method, path);
    if (operation == nullptr) return "no such operation";
    const auto* const request = operation->as_object().if_contains("requestBody");
    if (request == nullptr) return body.empty() ? "" : "a body, where there is none";
    if (body.empty()) return at(*request, "required").as_bool() ? "no body" : "";
    return check_text(at(at(at(*request, "content"), "application/json"), "schema"), body);
  }

  // Of an event's data.
  [[nodiscard]] std::string check_events(const boost::json::value& schemas,
                                         std::string_view stream) const {
    for (size_t end = stream.find("\n\n"); end != std::string_view::npos;
         end = stream.find("\n\n")) {
      const std::string event = line_of(stream.substr(0, end), "event: ");
      const std::string data = line_of(stream.substr(0, end), "data: ");
      stream.remove_prefix(end + 2);
      const auto* const schema = schemas.as_object().if_contains(event);
      if (schema == nullptr) return fmt::format("event '{}' is not in the document", event);
      if (const std::string bad = check_text(*schema, data); !bad.empty())
        return event + ": " + bad;
    }
    return stream.empty() ? "" : "an event was cut";
  }

 private:
  using Value = boost::json::value;

  static const Value& at(const Value& value, std::string_view key) {
    return value.as_object().at(key);
  }
  static bool may_be_anywhere(unsigned status) {
    constexpr unsigned kAnywhere[] = {404, 405, 408, 413, 431, 500, 503};
    return std::ranges::find(kAnywhere, status) != std::end(kAnywhere);
  }
  static std::string line_of(std::string_view frame, std::string_view start) {
    for (size_t from = 0; from < frame.size();) {
      const size_t end = std::min(frame.find('\n', from), frame.size());
      const std::string_view line = frame.substr(from, end - from);
      if (line.starts_with(start)) return std::string(line.substr(start.size()));
      from = end + 1;
    }
    return {};
  }

  [[nodiscard]] const Value& resolve(const Value& value) const {
    const Value* const ref = value.as_object().if_contains("$ref");
    if (ref == nullptr) return value;
    boost::json::error_code error;
    const std::string pointer(std::string_view(ref->as_string()).substr(1));
    const Value* const found = x_root.find_pointer(pointer, error);
    if (found == nullptr) throw std::runtime_error("openapi.json: " + pointer + " leads nowhere");
    return *found;
  }

  static bool matches(std::string_view pattern, std::string_view path) {
    const size_t brace = pattern.find("{n}");
    if (brace == std::string_view::npos) return pattern == path;
    if (!path.starts_with(pattern.substr(0, brace))) return false;
    const size_t end = std::min(path.find_first_not_of("0123456789", brace), path.size());
    return end > brace && path.substr(end) == pattern.substr(brace + 3);
  }

  [[nodiscard]] const Value* find_operation(std::string_view method, std::string_view path) const {
    std::string lower(method);
    for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    for (const auto& [pattern, methods] : at(x_root, "paths").as_object())
      if (matches(pattern, path)) return methods.as_object().if_contains(lower);
    return nullptr;
  }

  [[nodiscard]] const Value* find_response(std::string_view method, std::string_view path,
                                           unsigned status) const {
    const Value* const operation = find_operation(method, path);
    if (operation == nullptr) return nullptr;
    return at(*operation, "responses").as_object().if_contains(std::to_string(status));
  }

  [[nodiscard]] std::string check_text(const Value& schema, std::string_view text) const {
    boost::json::error_code error;
    const Value value = boost::json::parse(text, error);
    if (error) return fmt::format("no JSON ({}): {}", error.message(), text);
    const std::string bad = check(schema, value, "");
    return bad.empty() ? bad : bad + " in " + std::string(text.substr(0, 2000));
  }

  [[nodiscard]] std::string check_lines(const Value& schema, std::string_view text) const {
    while (!text.empty()) {
      const size_t end = text.find('\n');
      if (end == std::string_view::npos) return "the last line has no newline";
      if (std::string bad = check_text(schema, text.substr(0, end)); !bad.empty()) return bad;
      text.remove_prefix(end + 1);
    }
    return {};
  }

  static bool is_type(std::string_view type, const Value& value) {
    if (type == "object") return value.is_object();
    if (type == "array") return value.is_array();
    if (type == "string") return value.is_string();
    if (type == "boolean") return value.is_bool();
    if (type == "null") return value.is_null();
    if (type == "integer") return value.is_int64() || value.is_uint64();
    if (type == "number") return value.is_number();
    throw std::runtime_error("openapi.json: no such type: " + std::string(type));
  }

  [[nodiscard]] std::string check(const Value& given, const Value& value,
                                  const std::string& where) const {
    const Value& schema = resolve(given);
    for (const auto& [keyword, rule] : schema.as_object()) {
      std::string bad = check_keyword(keyword, rule, schema, value, where);
      if (!bad.empty()) return bad;
    }
    return {};
  }

  [[nodiscard]] std::string check_keyword(std::string_view keyword, const Value& rule,
                                          const Value& schema, const Value& value,
                                          const std::string& where) const {
    const auto fails = [&](std::string_view what) {
      return fmt::format("{} {} {}", where.empty() ? "it" : where, what,
                         boost::json::serialize(rule));
    };
    if (keyword == "description" || keyword == "properties") return {};
    if (keyword == "type") {
      const bool right =
          rule.is_array() ? std::ranges::any_of(
                                rule.as_array(),
                                [&](const Value& type) { return is_type(type.as_string(), value); })
                          : is_type(rule.as_string(), value);
      return right ? "" : fails("is not of type");
    }
    if (keyword == "enum")
      return std::ranges::find(rule.as_array(), value) != rule.as_array().end()
                 ? ""
                 : fails("is none of");
    if (keyword == "minimum")
      return value.to_number<double>() >= rule.to_number<double>() ? "" : fails("is less than");
    if (keyword == "maximum")
      return value.to_number<double>() <= rule.to_number<double>() ? "" : fails("is more than");
    if (keyword == "anyOf")
      return std::ranges::any_of(
                 rule.as_array(),
                 [&](const Value& choice) { return check(choice, value, where).empty(); })
                 ? ""
                 : fails("fits none of");
    if (keyword == "items") return check_items(rule, value, where);
    if (keyword == "required") {
      for (const Value& key : rule.as_array())
        if (value.is_object() && !value.as_object().contains(key.as_string()))
          return fails("lacks one of");
      return {};
    }
    if (keyword == "additionalProperties") return check_members(rule, schema, value, where);
    throw std::runtime_error("openapi.json: keyword not known: " + std::string(keyword));
  }

  [[nodiscard]] std::string check_items(const Value& rule, const Value& value,
                                        const std::string& where) const {
    if (!value.is_array()) return {};
    size_t index = 0;
    for (const Value& item : value.as_array()) {
      std::string bad = check(rule, item, fmt::format("{}[{}]", where, index++));
      if (!bad.empty()) return bad;
    }
    return {};
  }

  // Every object's schema has additionalProperties, so this is where its members are looked at.
  [[nodiscard]] std::string check_members(const Value& rule, const Value& schema,
                                          const Value& value, const std::string& where) const {
    if (!value.is_object()) return {};
    const Value* const properties = schema.as_object().if_contains("properties");
    for (const auto& [key, member] : value.as_object()) {
      const std::string here = where + "." + std::string(key);
      const Value* const known =
          properties != nullptr ? properties->as_object().if_contains(key) : nullptr;
      if (known == nullptr && rule.is_bool()) {
        if (!rule.as_bool()) return here + " is not in the document";
        continue;
      }
      std::string bad = check(known != nullptr ? *known : rule, member, here);
      if (!bad.empty()) return bad;
    }
    return {};
  }

  Value x_root;
};

}  // namespace lethe
