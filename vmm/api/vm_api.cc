#include "vmm/api/vm_api.h"

#include <fmt/format.h>

#include <array>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "vmm/api/api_body.h"
#include "vmm/api/metric_writers.h"
#include "vmm/config_schema.h"
#include "vmm/suggest.h"

namespace lethe {
namespace json = boost::json;

namespace {

void get_state(ApiTarget& target, const HttpRequest&, const ReplyPtr& reply) {
  const VmState state = target.state();
  reply->send(json_answer({{"name", state.name},
                           {"state", state.state},
                           {"pid", state.pid},
                           {"uptime_s", state.uptime_s},
                           {"boots", state.boots},
                           {"cpus", state.cpus},
                           {"memory_bytes", state.memory_bytes}}));
}

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

void get_stats(ApiTarget& target, const HttpRequest&, const ReplyPtr& reply) {
  target.refresh([&target, reply] { reply->send({.body = stats_text(target)}); });
}

void get_metrics(ApiTarget& target, const HttpRequest&, const ReplyPtr& reply) {
  target.refresh([&target, reply] {
    PrometheusWriter writer;
    target.report_metrics(writer);
    reply->send({.body = writer.text(), .type = PrometheusWriter::kContentType});
  });
}

void get_memory(ApiTarget& target, const HttpRequest&, const ReplyPtr& reply) {
  const MemorySettings memory = target.memory();
  reply->send(json_answer({{"policy", memory.policy},
                           {"policy_now", memory.policy_now},
                           {"auto", memory.automatic},
                           {"pool_max", memory.pool_max},
                           {"balloon_target", memory.balloon_target},
                           {"balloon_actual", memory.balloon_actual}}));
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
      return tl::unexpected(
          fmt::format("'{}' can't be set{}", printable(key), did_you_mean(key, kKnown)));
    }
  }
  return change;
}

void put_memory(ApiTarget& target, const HttpRequest& request, const ReplyPtr& reply) {
  const auto object = parse_body(request);
  if (!object) return reply->send(object.error());
  const auto change = memory_change(*object);
  if (!change) return reply->send(http_error(400, change.error()));
  if (const auto set = target.set_memory(*change); !set)
    return reply->send(http_error(409, set.error().text));
  get_memory(target, request, reply);
}

// One JSON object a line: progress, and the end.
void post_reclaim(ApiTarget& target, const HttpRequest& request, const ReplyPtr& reply) {
  const auto object = parse_body(request);
  if (!object) return reply->send(object.error());
  const json::value* const wanted = object->if_contains("bytes");
  if (wanted == nullptr || object->size() != 1)
    return reply->send(http_error(400, "the body must be {\"bytes\": N} or {\"bytes\": \"all\"}"));
  uint64_t bytes = UINT64_MAX;
  if (!wanted->is_string() || wanted->get_string() != "all") {
    const auto number = bytes_of("bytes", *wanted);
    if (!number) return reply->send(http_error(400, number.error() + ", or \"all\""));
    bytes = *number;
  }
  // Both callbacks come later, so the stream has begun by then.
  const auto started = target.reclaim(
      bytes,
      [reply](uint64_t so_far) { (void)reply->write(fmt::format("{{\"bytes\":{}}}\n", so_far)); },
      [reply](const ReclaimEnd& end) {
        (void)reply->write(
            fmt::format("{{\"bytes\":{},\"took_ms\":{},\"complete\":{},\"text\":{}}}\n", end.bytes,
                        end.took.count(), end.complete, json_quote(end.text)));
        reply->end();
      });
  if (!started) return reply->send(http_error(409, started.error().text));
  reply->begin(200, "application/x-ndjson");
}

struct Route {
  std::string_view path;
  std::string_view method;
  void (*run)(ApiTarget&, const HttpRequest&, const ReplyPtr&);
};

constexpr std::array kRoutes = {
    Route{"/state", "GET", get_state},     Route{"/stats", "GET", get_stats},
    Route{"/metrics", "GET", get_metrics}, Route{"/memory", "GET", get_memory},
    Route{"/memory", "PUT", put_memory},   Route{"/memory/reclaim", "POST", post_reclaim},
    Route{"/gui", "GET", get_gui},         Route{"/gui", "PATCH", patch_gui},
    Route{"/log", "GET", get_log},         Route{"/log", "PATCH", patch_log},
};

}  // namespace

void answer_api(ApiTarget& target, const HttpRequest& request, std::shared_ptr<HttpReply> reply) {
  std::string allowed;
  for (const Route& route : kRoutes) {
    if (route.path != request.path) continue;
    if (route.method == request.method) return route.run(target, request, reply);
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
