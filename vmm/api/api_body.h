// What the control API's paths share: bodies of requests, and answers.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <tl/expected.hpp>

#include "vmm/api/vm_api.h"

namespace lethe {

using ReplyPtr = std::shared_ptr<HttpReply>;

[[nodiscard]] HttpAnswer json_answer(const boost::json::object& object);

// The body as an object, or the answer that says why it is none.
[[nodiscard]] tl::expected<boost::json::object, HttpAnswer> parse_body(const HttpRequest& request);

// "'key' must be RULE".
[[nodiscard]] tl::unexpected<std::string> wrong(std::string_view key, std::string_view rule);

// Bytes as a whole number, or a size as configs have it: "512M".
[[nodiscard]] tl::expected<uint64_t, std::string> bytes_of(std::string_view key,
                                                           const boost::json::value& value);

// /gui and /log.
void get_gui(ApiTarget& target, const HttpRequest& request, const ReplyPtr& reply);
void patch_gui(ApiTarget& target, const HttpRequest& request, const ReplyPtr& reply);
void get_log(ApiTarget& target, const HttpRequest& request, const ReplyPtr& reply);
void patch_log(ApiTarget& target, const HttpRequest& request, const ReplyPtr& reply);

}  // namespace lethe
