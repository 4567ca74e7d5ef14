// The control API's /nets.
#include <fmt/format.h>

#include "vmm/api/api_body.h"
#include "vmm/api/events.h"

namespace lethe {
namespace json = boost::json;

namespace {

json::object object_of(const NetState& net) {
  return {{"name", net.name},
          {"backend", net.backend},
          {"mac", net.mac},
          {"mtu", net.mtu},
          {"link", net.link},
          {"up", net.up},
          {"bandwidth_max", net.bandwidth_max},
          {"packets_max", net.packets_max}};
}

tl::expected<NetChange, std::string> net_change(const json::object& object) {
  NetChange change;
  for (const auto& [json_key, value] : object) {
    const std::string_view key(json_key.data(), json_key.size());
    if (key == "link") {
      if (!value.is_bool()) return wrong(key, "true or false");
      change.link = value.get_bool();
    } else if (key == "bandwidth_max" || key == "packets_max") {
      const auto number = config_number("net", key, value);
      if (!number) return tl::unexpected(number.error());
      (key == "packets_max" ? change.packets_max : change.bandwidth_max) = *number;
    } else {
      constexpr std::string_view kKnown[] = {"link", "bandwidth_max", "packets_max"};
      return unknown_key(key, kKnown);
    }
  }
  return change;
}

// Answers with the error if there is no such card.
std::optional<NetState> find_net(const ApiCall& call) {
  const std::vector<NetState> nets = call.target.nets();
  if (call.number < nets.size()) return nets[call.number];
  call.refuse(404,
              fmt::format("there is no network card {}: this VM has {}", call.number, nets.size()));
  return std::nullopt;
}

}  // namespace

void get_nets(const ApiCall& call) {
  json::array all;
  for (const NetState& net : call.target.nets()) all.push_back(object_of(net));
  call.answer({{"nets", std::move(all)}});
}

void get_net(const ApiCall& call) {
  if (const auto net = find_net(call)) call.answer(object_of(*net));
}

void patch_net(const ApiCall& call) {
  const auto before = find_net(call);
  if (!before) return;
  const auto object = parse_body(call.request);
  if (!object) return call.reply->send(object.error());
  const auto change = net_change(*object);
  if (!change) return call.refuse(400, change.error());
  call.target.set_net(call.number, *change);
  const NetState after = call.target.nets()[call.number];
  if (after.up != before->up)
    call.target.events().publish("link",
                                 {{"net", call.number}, {"up", after.up}, {"why", "asked"}});
  call.target.events().publish("net", {{"net", call.number}});
  call.answer(object_of(after));
}

}  // namespace lethe
