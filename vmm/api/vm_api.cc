#include "vmm/api/vm_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <charconv>

#include "vmm/api/api_body.h"
#include "vmm/api/events.h"
#include "vmm/api/metric_writers.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace json = boost::json;

namespace {

// The metrics' object with one more member.
std::string stats_text(ApiTarget& target) {
  JsonMetricWriter writer;
  target.report_metrics(writer);
  std::string text = writer.text();
  text.pop_back();
  text += text.size() > 1 ? ",\"decisions\":[" : "\"decisions\":[";
  const char* separator = "";
  for (const DecisionLine& decision : target.decisions()) {
    text += fmt::format("{}{{\"age_s\":{:.1f},\"text\":{}}}", separator, decision.age_s,
                        json_quote(decision.text));
    separator = ",";
  }
  return text + "]}\n";
}

void get_stats(const ApiCall& call) {
  call.target.refresh(
      [&target = call.target, reply = call.reply] { reply->send({.body = stats_text(target)}); });
}

void get_metrics(const ApiCall& call) {
  call.target.refresh([&target = call.target, reply = call.reply] {
    PrometheusWriter writer;
    target.report_metrics(writer);
    reply->send({.body = writer.text(), .type = PrometheusWriter::kContentType});
  });
}

void get_memory(const ApiCall& call) {
  const MemorySettings memory = call.target.memory();
  call.answer({{"policy", memory.policy},
               {"policy_now", memory.policy_now},
               {"auto", memory.automatic},
               {"pool_max", memory.pool_max},
               {"balloon_target", memory.balloon_target},
               {"balloon_actual", memory.balloon_actual}});
}

tl::expected<MemoryChange, std::string> memory_change(const json::object& object) {
  MemoryChange change;
  for (const auto& [json_key, value] : object) {
    const std::string_view key(json_key.data(), json_key.size());
    if (key == "policy") {
      const std::string_view word =
          value.is_string() ? std::string_view(value.get_string()) : std::string_view();
      for (size_t i = 0; i < kMemoryPolicies.size(); ++i)
        if (word == kMemoryPolicies[i]) change.policy = static_cast<MemoryPolicy>(i);
      if (!change.policy) return wrong(key, "\"auto\", \"pool\", \"discard\" or \"lazy\"");
    } else if (key == "auto") {
      if (!value.is_bool()) return wrong(key, "true or false");
      change.automatic = value.get_bool();
    } else if (key == "pool_max" || key == "balloon_target") {
      const auto bytes = bytes_of(key, value);
      if (!bytes) return tl::unexpected(bytes.error());
      (key == "pool_max" ? change.pool_max : change.balloon_target) = *bytes;
    } else {
      constexpr std::string_view kKnown[] = {"policy", "auto", "pool_max", "balloon_target"};
      return unknown_key(key, kKnown);
    }
  }
  return change;
}

void put_memory(const ApiCall& call) {
  const auto object = parse_body(call.request);
  if (!object) return call.reply->send(object.error());
  const auto change = memory_change(*object);
  if (!change) return call.refuse(400, change.error());
  if (const auto set = call.target.set_memory(*change); !set)
    return call.refuse(409, set.error().text);
  call.target.events().publish("memory");
  get_memory(call);
}

// One JSON object a line: progress, and the end.
void post_reclaim(const ApiCall& call) {
  const ReplyPtr& reply = call.reply;
  const auto object = parse_body(call.request);
  if (!object) return reply->send(object.error());
  const json::value* const wanted = object->if_contains("bytes");
  if (wanted == nullptr || object->size() != 1)
    return call.refuse(400, "the body must be {\"bytes\": N} or {\"bytes\": \"all\"}");
  uint64_t bytes = UINT64_MAX;
  if (!wanted->is_string() || wanted->get_string() != "all") {
    const auto number = bytes_of("bytes", *wanted);
    if (!number) return call.refuse(400, number.error() + ", or \"all\"");
    bytes = *number;
  }
  // Both callbacks come later, so the stream has begun by then.
  const auto started = call.target.reclaim(
      bytes,
      [reply](uint64_t so_far) { (void)reply->write(fmt::format("{{\"bytes\":{}}}\n", so_far)); },
      [reply, &events = call.target.events()](const ReclaimEnd& end) {
        events.publish("reclaimed", {{"bytes", end.bytes}, {"complete", end.complete}});
        (void)reply->write(
            fmt::format("{{\"bytes\":{},\"took_ms\":{},\"complete\":{},\"text\":{}}}\n", end.bytes,
                        end.took.count(), end.complete, json_quote(end.text)));
        reply->end();
      });
  if (!started) return call.refuse(409, started.error().text);
  reply->begin(200, "application/x-ndjson");
}

// One a line, so that each can be added and found by itself.
// clang-format off
constexpr ApiRoute kRoutes[] = {
    {"/state", "GET", get_state},
    {"/pause", "POST", post_pause},
    {"/resume", "POST", post_resume},
    {"/power-button", "POST", post_power_button},
    {"/reset", "POST", post_reset},
    {"/kill", "POST", post_kill},
    {"/snapshot", "POST", post_snapshot},
    {"/events", "GET", get_events},
    {"/stats", "GET", get_stats},
    {"/metrics", "GET", get_metrics},
    {"/memory", "GET", get_memory},
    {"/memory", "PUT", put_memory},
    {"/memory/reclaim", "POST", post_reclaim},
    {"/disks", "GET", get_disks},
    {"/disks/{n}", "GET", get_disk},
    {"/disks/{n}", "PATCH", patch_disk},
    {"/gui", "GET", get_gui},
    {"/gui", "PATCH", patch_gui},
    {"/gui/screens", "GET", get_screens},
    {"/gui/screens/{n}", "PUT", put_screen},
    {"/gui/screens/{n}/screenshot", "GET", get_screenshot},
    {"/log", "GET", get_log},
    {"/log", "PATCH", patch_log},
    {"/console/log", "GET", get_console_log},
    {"/console/size", "PUT", put_console_size},
    {"/nets", "GET", get_nets},
    {"/nets/{n}", "GET", get_net},
    {"/nets/{n}", "PATCH", patch_net},
};
// clang-format on

constexpr std::string_view kNumber = "{n}";
constexpr size_t kNumberDigitsMax = 5;

// Whether the path is the pattern's; the number in the place of its {n}, else 0.
std::optional<uint32_t> match(std::string_view pattern, std::string_view path) {
  const size_t at = pattern.find(kNumber);
  if (at == std::string_view::npos)
    return pattern == path ? std::optional<uint32_t>(0) : std::nullopt;
  if (!path.starts_with(pattern.substr(0, at))) return std::nullopt;
  path.remove_prefix(at);
  const size_t digits = std::min(path.find_first_not_of("0123456789"), path.size());
  if (digits == 0 || digits > kNumberDigitsMax ||
      path.substr(digits) != pattern.substr(at + kNumber.size()))
    return std::nullopt;
  uint32_t number = 0;
  (void)std::from_chars(path.data(), path.data() + digits, number);
  return number;
}

}  // namespace

std::span<const ApiRoute> api_routes() { return kRoutes; }

void answer_api(ApiTarget& target, const HttpRequest& request, std::shared_ptr<HttpReply> reply) {
  std::string allowed;
  for (const ApiRoute& route : kRoutes) {
    const auto number = match(route.path, request.path);
    if (!number) continue;
    if (route.method == request.method)
      return route.run({target, request, std::move(reply), *number});
    allowed += (allowed.empty() ? "" : ", ") + std::string(route.method);
  }
  if (allowed.empty())
    return reply->send(http_error(404, fmt::format("there is no {}", printable(request.path))));
  HttpAnswer answer = http_error(
      405, fmt::format("{} takes {}, not {}", request.path, allowed, printable(request.method)));
  answer.allow = allowed;
  reply->send(std::move(answer));
}

}  // namespace lethe
