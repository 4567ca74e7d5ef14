// The control API's /console: what was printed last, and the terminal's size. The console itself is
// at console.sock (vmm/console_host.h).
#include <fmt/format.h>

#include "vmm/api/api_body.h"

namespace lethe {
namespace {

constexpr uint64_t kSideMax = 65535;  // of virtio_console_config

}  // namespace

// The guest's bytes as they are: no JSON, since they need be no text.
void get_console_log(const ApiCall& call) {
  call.reply->send({.body = call.target.console_log(), .type = "application/octet-stream"});
}

void put_console_size(const ApiCall& call) {
  const auto object = parse_body(call.request);
  if (!object) return call.reply->send(object.error());
  uint64_t columns = 0;
  uint64_t rows = 0;
  for (const auto& [json_key, value] : *object) {
    const std::string_view key(json_key.data(), json_key.size());
    constexpr std::string_view kKnown[] = {"columns", "rows"};
    if (key != "columns" && key != "rows")
      return call.refuse(400, unknown_key(key, kKnown).value());
    const auto number = value.is_int64() ? value.get_int64() : 0;
    if (number < 1 || static_cast<uint64_t>(number) > kSideMax)
      return call.refuse(400,
                         wrong(key, fmt::format("a whole number from 1 to {}", kSideMax)).value());
    (key == "columns" ? columns : rows) = static_cast<uint64_t>(number);
  }
  if (columns == 0 || rows == 0)
    return call.refuse(400, "the body must be {\"columns\": N, \"rows\": N}");
  call.target.resize_console(static_cast<uint16_t>(columns), static_cast<uint16_t>(rows));
  call.answer({{"columns", columns}, {"rows", rows}});
}

}  // namespace lethe
