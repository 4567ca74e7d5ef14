// The control API's /disks: sizes and rate limits, while the guest runs.
#include <fmt/format.h>

#include "vmm/api/api_body.h"
#include "vmm/api/events.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace json = boost::json;

namespace {

json::object disk_object(size_t index, const DiskState& disk) {
  return {{"disk", index},
          {"path", disk.path},
          {"read_only", disk.read_only},
          {"size_bytes", disk.size_bytes},
          {"iops_max", disk.iops_max},
          {"bandwidth_max", disk.bandwidth_max}};
}

void answer_disk(const ApiCall& call) {
  call.answer(disk_object(call.number, call.target.disks()[call.number]));
}

// Whether the path's number is one of a disk; else that was the answer.
bool is_disk(const ApiCall& call) {
  if (call.number < call.target.disks().size()) return true;
  call.refuse(404, fmt::format("there is no disk {}", call.number));
  return false;
}

tl::expected<DiskChange, std::string> disk_change(const json::object& object) {
  DiskChange change;
  for (const auto& [json_key, value] : object) {
    const std::string_view key(json_key.data(), json_key.size());
    if (key == "size_bytes") {
      change.resize = true;
      if (value.is_string() && value.get_string() == "file") continue;
      const auto bytes = bytes_of(key, value);
      if (!bytes) return tl::unexpected(bytes.error() + ", or \"file\"");
      change.size_bytes = *bytes;
    } else if (key == "iops_max" || key == "bandwidth_max") {
      const auto number = config_number("disk", key, value);
      if (!number) return tl::unexpected(number.error());
      (key == "iops_max" ? change.iops_max : change.bandwidth_max) = *number;
    } else {
      constexpr std::string_view kKnown[] = {"size_bytes", "iops_max", "bandwidth_max"};
      return unknown_key(key, kKnown);
    }
  }
  return change;
}

}  // namespace

void get_disks(const ApiCall& call) {
  json::array disks;
  for (const DiskState& disk : call.target.disks())
    disks.push_back(disk_object(disks.size(), disk));
  call.answer({{"disks", std::move(disks)}});
}

void get_disk(const ApiCall& call) {
  if (is_disk(call)) answer_disk(call);
}

void patch_disk(const ApiCall& call) {
  if (!is_disk(call)) return;
  const auto object = parse_body(call.request);
  if (!object) return call.reply->send(object.error());
  const auto change = disk_change(*object);
  if (!change) return call.refuse(400, change.error());
  if (const auto set = call.target.set_disk(call.number, *change); !set)
    return call.refuse(409, printable(set.error().text));
  call.target.events().publish("disk", {{"disk", call.number}});
  answer_disk(call);
}

}  // namespace lethe
