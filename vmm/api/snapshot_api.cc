// The control API's /snapshot.
#include <fmt/format.h>

#include "vmm/api/api_body.h"

namespace lethe {

void post_snapshot(const ApiCall& call) {
  const auto object = parse_body(call.request);
  if (!object) return call.reply->send(object.error());
  std::string dir;
  bool stop = false;
  for (const auto& [json_key, value] : *object) {
    const std::string_view key(json_key.data(), json_key.size());
    constexpr std::string_view kKnown[] = {"dir", "stop"};
    if (key == "dir") {
      if (!value.is_string() || !value.get_string().starts_with('/') ||
          value.get_string().find('\0') != boost::json::string::npos)
        return call.refuse(400, wrong(key, "an absolute path").value());
      dir = std::string_view(value.get_string());
    } else if (key == "stop") {
      if (!value.is_bool()) return call.refuse(400, wrong(key, "true or false").value());
      stop = value.get_bool();
    } else {
      return call.refuse(400, unknown_key(key, kKnown).value());
    }
  }
  if (dir.empty()) return call.refuse(400, "'dir' is missing: an absolute path");
  // Of the copy only the reply is used: the request is gone by then.
  call.target.snapshot(dir, stop, [later = call, dir](const Result<SnapshotEnd>& taken) {
    if (!taken) return later.refuse(409, taken.error().text);
    later.answer({{"dir", dir},
                  {"memory_bytes", taken->memory_bytes},
                  {"disk_bytes", taken->disk_bytes},
                  {"paused_ms", taken->paused_ms}});
  });
}

}  // namespace lethe
