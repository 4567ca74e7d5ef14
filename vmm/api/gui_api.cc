// The control API's /gui and /log.
#include <algorithm>

#include "base/log.h"
#include "vmm/api/api_body.h"
#include "vmm/api/events.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace json = boost::json;

namespace {

tl::expected<GuiChange, std::string> gui_change(const json::object& object) {
  GuiChange change;
  for (const auto& [json_key, value] : object) {
    const std::string_view key(json_key.data(), json_key.size());
    constexpr std::string_view kKnown[] = {"free_per_iteration", "orphan_bytes_max", "orphans_max",
                                           "orphan_ms_max"};
    if (std::find(std::begin(kKnown), std::end(kKnown), key) == std::end(kKnown))
      return unknown_key(key, kKnown);
    const auto number = config_number("gui", key, value);
    if (!number) return tl::unexpected(number.error());
    if (key == "free_per_iteration") change.free_per_iteration = static_cast<uint32_t>(*number);
    if (key == "orphan_bytes_max") change.orphan_bytes_max = *number;
    if (key == "orphans_max") change.orphans_max = static_cast<uint32_t>(*number);
    if (key == "orphan_ms_max") change.orphan_ms_max = static_cast<uint32_t>(*number);
  }
  return change;
}

}  // namespace

void get_gui(const ApiCall& call) {
  const auto gui = call.target.gui();
  if (!gui) return call.refuse(409, gui.error().text);
  json::object buffers;
  for (const GuiBuffers& part : call.target.gui_buffers())
    buffers[part.state] = json::object{{"buffers", part.buffers}, {"bytes", part.bytes}};
  call.answer({{"free_per_iteration", gui->free_per_iteration},
               {"orphan_bytes_max", gui->orphan_bytes_max},
               {"orphans_max", gui->orphans_max},
               {"orphan_ms_max", gui->orphan_ms_max},
               {"buffers", std::move(buffers)}});
}

void patch_gui(const ApiCall& call) {
  const auto object = parse_body(call.request);
  if (!object) return call.reply->send(object.error());
  const auto change = gui_change(*object);
  if (!change) return call.refuse(400, change.error());
  if (const auto set = call.target.set_gui(*change); !set)
    return call.refuse(409, set.error().text);
  call.target.events().publish("gui");
  get_gui(call);
}

void get_log(const ApiCall& call) { call.answer({{"levels", log_levels()}}); }

void patch_log(const ApiCall& call) {
  const auto object = parse_body(call.request);
  if (!object) return call.reply->send(object.error());
  const json::value* const levels = object->if_contains("levels");
  if (levels == nullptr || !levels->is_string() || object->size() != 1)
    return call.refuse(400, "the body must be {\"levels\": \"LEVEL,MODULE=LEVEL,...\"}");
  if (const auto set = set_log_levels(std::string_view(levels->get_string())); !set)
    return call.refuse(400, printable(set.error().text));
  call.target.events().publish("log");
  get_log(call);
}

}  // namespace lethe
