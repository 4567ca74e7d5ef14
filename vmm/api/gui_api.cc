// The control API's /gui and /log.
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "vmm/api/api_body.h"
#include "vmm/config_schema.h"
#include "vmm/suggest.h"

namespace lethe {
namespace json = boost::json;

namespace {

// A number within what the config allows for the key.
tl::expected<uint64_t, std::string> number_of(std::string_view name, const json::value& value) {
  const ConfigKey* const key = find_config_key("gui", name);
  tl::expected<uint64_t, std::string> number = bytes_of(name, value);
  const bool plain = key->type != KeyType::kSize && value.is_string();
  if (plain || !number || *number < key->min || *number > key->max)
    return wrong(name, expectation(*key));
  return number;
}

tl::expected<GuiChange, std::string> gui_change(const json::object& object) {
  GuiChange change;
  for (const auto& [json_key, value] : object) {
    const std::string_view key(json_key.data(), json_key.size());
    constexpr std::string_view kKnown[] = {"free_per_iteration", "orphan_bytes_max", "orphans_max",
                                           "orphan_ms_max"};
    if (std::find(std::begin(kKnown), std::end(kKnown), key) == std::end(kKnown))
      return tl::unexpected(
          fmt::format("'{}' can't be set{}", printable(key), did_you_mean(key, kKnown)));
    const auto number = number_of(key, value);
    if (!number) return tl::unexpected(number.error());
    if (key == "free_per_iteration") change.free_per_iteration = static_cast<uint32_t>(*number);
    if (key == "orphan_bytes_max") change.orphan_bytes_max = *number;
    if (key == "orphans_max") change.orphans_max = static_cast<uint32_t>(*number);
    if (key == "orphan_ms_max") change.orphan_ms_max = static_cast<uint32_t>(*number);
  }
  return change;
}

}  // namespace

void get_gui(ApiTarget& target, const HttpRequest& /*request*/, const ReplyPtr& reply) {
  const auto gui = target.gui();
  if (!gui) return reply->send(http_error(409, gui.error().text));
  json::object buffers;
  for (const GuiBuffers& part : target.gui_buffers())
    buffers[part.state] = json::object{{"buffers", part.buffers}, {"bytes", part.bytes}};
  reply->send(json_answer({{"free_per_iteration", gui->free_per_iteration},
                           {"orphan_bytes_max", gui->orphan_bytes_max},
                           {"orphans_max", gui->orphans_max},
                           {"orphan_ms_max", gui->orphan_ms_max},
                           {"buffers", std::move(buffers)}}));
}

void patch_gui(ApiTarget& target, const HttpRequest& request, const ReplyPtr& reply) {
  const auto object = parse_body(request);
  if (!object) return reply->send(object.error());
  const auto change = gui_change(*object);
  if (!change) return reply->send(http_error(400, change.error()));
  if (const auto set = target.set_gui(*change); !set)
    return reply->send(http_error(409, set.error().text));
  get_gui(target, request, reply);
}

void get_log(ApiTarget& /*target*/, const HttpRequest& /*request*/, const ReplyPtr& reply) {
  reply->send(json_answer({{"levels", log_levels()}}));
}

void patch_log(ApiTarget& target, const HttpRequest& request, const ReplyPtr& reply) {
  const auto object = parse_body(request);
  if (!object) return reply->send(object.error());
  const json::value* const levels = object->if_contains("levels");
  if (levels == nullptr || !levels->is_string() || object->size() != 1)
    return reply->send(
        http_error(400, "the body must be {\"levels\": \"LEVEL,MODULE=LEVEL,...\"}"));
  if (const auto set = set_log_levels(std::string_view(levels->get_string())); !set)
    return reply->send(http_error(400, printable(set.error().text)));
  get_log(target, request, reply);
}

}  // namespace lethe
