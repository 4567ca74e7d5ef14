// What the control API's paths share: calls and routes, bodies of requests, and answers.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <tl/expected.hpp>

#include "vmm/api/vm_api.h"

namespace lethe {

using ReplyPtr = std::shared_ptr<HttpReply>;

// One request, as its route's function gets it.
struct ApiCall {
  ApiTarget& target;
  const HttpRequest& request;  // for as long as the function runs
  ReplyPtr reply;              // may be kept, to answer later
  uint32_t number = 0;         // what stands in the place of the path's {n}

  void answer(const boost::json::object& object, unsigned status = 200) const;
  void refuse(unsigned status, std::string_view text) const;
};

// Adding an endpoint: its function, declared below; its line in kRoutes (vm_api.cc); its path in
// docs/openapi.json, against which the tests check every answer; its line in docs/api.md.
struct ApiRoute {
  std::string_view path;  // "/disks/{n}" stands for /disks/0 and so on
  std::string_view method;
  void (*run)(const ApiCall&);
};
[[nodiscard]] std::span<const ApiRoute> api_routes();

// The body as an object, or the answer that says why it is none.
[[nodiscard]] tl::expected<boost::json::object, HttpAnswer> parse_body(const HttpRequest& request);
// The same where there is nothing to say: no body, or {}.
[[nodiscard]] tl::expected<void, HttpAnswer> expect_no_body(const HttpRequest& request);

// "'key' must be RULE".
[[nodiscard]] tl::unexpected<std::string> wrong(std::string_view key, std::string_view rule);
// "'key' can't be set", and what it may have meant.
[[nodiscard]] tl::unexpected<std::string> unknown_key(std::string_view key,
                                                      std::span<const std::string_view> known);

// Bytes as a whole number, or a size as configs have it: "512M".
[[nodiscard]] tl::expected<uint64_t, std::string> bytes_of(std::string_view key,
                                                           const boost::json::value& value);
// A number within what the config allows for the key `name` of the section.
[[nodiscard]] tl::expected<uint64_t, std::string> config_number(std::string_view section,
                                                                std::string_view name,
                                                                const boost::json::value& value);

// run_api.cc: the run itself.
void get_state(const ApiCall& call);
void post_pause(const ApiCall& call);
void post_resume(const ApiCall& call);
void post_power_button(const ApiCall& call);
void post_reset(const ApiCall& call);
void post_kill(const ApiCall& call);
void get_events(const ApiCall& call);
// snapshot_api.cc
void post_snapshot(const ApiCall& call);
// disk_api.cc
void get_disks(const ApiCall& call);
void get_disk(const ApiCall& call);
void patch_disk(const ApiCall& call);
// screen_api.cc
void get_screens(const ApiCall& call);
void put_screen(const ApiCall& call);
void get_screenshot(const ApiCall& call);
// gui_api.cc: /gui and /log.
void get_gui(const ApiCall& call);
void patch_gui(const ApiCall& call);
void get_log(const ApiCall& call);
void patch_log(const ApiCall& call);
// console_api.cc: /console.
void get_console_log(const ApiCall& call);
void put_console_size(const ApiCall& call);
// net_api.cc: /nets.
void get_nets(const ApiCall& call);
void get_net(const ApiCall& call);
void patch_net(const ApiCall& call);

}  // namespace lethe
