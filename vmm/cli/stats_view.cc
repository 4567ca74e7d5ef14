#include "vmm/cli/stats_view.h"

#include <fmt/format.h>

#include <vector>

#include "vmm/cli/vm_client.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace json = boost::json;

namespace {

constexpr int kLabelWidth = 22;
constexpr size_t kDecisionsShown = 8;  // --json has more

class Table {
 public:
  explicit Table(const json::value& stats) : x_stats(stats) {}

  void section(const char* name) { x_section = name; }
  void row(std::string_view label, const std::string& text) {
    if (x_section != nullptr) x_text += fmt::format("\n{}\n", x_section);
    x_section = nullptr;
    x_text += fmt::format("  {:<{}}{}\n", label, kLabelWidth, text);
  }
  // The sum of a metric over its labels, in bytes; `note` follows.
  void bytes(std::string_view label, std::string_view path, const std::string& note = {}) {
    if (const auto value = sum_at(x_stats, path)) row(label, human_bytes(*value) + note);
  }
  void count(std::string_view label, std::string_view path, const std::string& note = {}) {
    if (const auto value = sum_at(x_stats, path)) row(label, fmt::format("{:.0f}{}", *value, note));
  }
  void latency(std::string_view label, std::string_view path) {
    const json::value* const all = find_path(x_stats, path);
    if (all == nullptr || sum_at(*all, "count").value_or(0) == 0) return;
    row(label, fmt::format("p50 {}, p99 {}, max {} ({:.0f} times)",
                           human_duration(number_at(*all, "p50").value_or(0)),
                           human_duration(number_at(*all, "p99").value_or(0)),
                           human_duration(number_at(*all, "max").value_or(0)),
                           number_at(*all, "count").value_or(0)));
  }
  // " (report 12 MiB, hint 3 MiB)": the parts of a metric with one label.
  [[nodiscard]] std::string parts(std::string_view path) const {
    const json::value* const value = find_path(x_stats, path);
    if (value == nullptr || !value->is_object()) return {};
    std::string text;
    for (const auto& [key, part] : value->get_object())
      if (const double bytes = sum_at(part, "").value_or(0); bytes > 0)
        text +=
            fmt::format("{}{} {}", text.empty() ? " (" : ", ",
                        printable(std::string_view(key.data(), key.size())), human_bytes(bytes));
    return text.empty() ? text : text + ")";
  }
  [[nodiscard]] std::string take() { return std::move(x_text); }

 private:
  const json::value& x_stats;
  const char* x_section = nullptr;  // to be printed before its first row
  std::string x_text;
};

void add_memory(Table& table, const json::value& stats) {
  table.section("memory");
  table.bytes("guest", "memory.size_bytes");
  table.bytes("resident", "memory.resident_bytes", " of it at the host");
  table.bytes("whole process", "process.resident_bytes");
  table.section("returned by the guest");
  if (const json::value* const policy = find_path(stats, "return.policy");
      policy != nullptr && policy->is_object() && !policy->get_object().empty())
    table.row("policy now", printable(std::string_view(policy->get_object().begin()->key())));
  table.bytes("reported", "return.reported_bytes_total",
              table.parts("return.reported_bytes_total"));
  table.bytes("merged", "return.merged_bytes_total");
  table.bytes("moved to the pool", "return.moved_bytes_total");
  table.bytes("discarded", "return.freed_bytes_total");
  table.bytes("left to the host", "return.lazy_bytes_total");
  table.bytes("isolated now", "return.isolated_bytes");
  table.bytes("isolated at most", "return.isolated_highest_bytes");
  table.latency("forgotten within", "return.forget_seconds");
  table.section("scrub pool");
  table.bytes("dirty", "pool.bytes.dirty");
  table.bytes("being scrubbed", "pool.bytes.scrubbing");
  table.bytes("clean", "pool.bytes.clean");
  table.bytes("at most", "pool.limit_bytes");
  table.bytes("scrubbed", "pool.scrubbed_bytes_total");
  table.bytes("expired dirty", "pool.expired_bytes_total");
  table.bytes("given to the host", "pool.trimmed_bytes_total");
  table.bytes("refaulted", "pool.refaulted_bytes_total", table.parts("pool.refaulted_bytes_total"));
  table.latency("refault took", "pool.refault_seconds");
  table.latency("unreadable within", "pool.forget_seconds");
  table.section("the guest says");
  table.bytes("total", "guest.memory_statistic.total_bytes");
  table.bytes("free", "guest.memory_statistic.free_bytes");
  table.bytes("available", "guest.memory_statistic.available_bytes");
  table.count("major faults", "guest.memory_statistic.major_faults");
  table.count("out of memory", "guest.memory_statistic.oom_kills", " killed");
  table.section("balloon");
  table.bytes("target", "balloon.target_bytes");
  table.bytes("actual", "balloon.actual_bytes");
}

// Buffers and bytes of a state of shared buffers, if there are any.
void add_buffers(Table& table, const json::value& stats, const char* state,
                 const char* now_or_total, const char* note) {
  const std::string name(now_or_total);
  const auto count = number_at(stats, "gui.buffers" + name + "." + state);
  const auto bytes = number_at(stats, "gui.buffer_bytes" + name + "." + state);
  if (count && bytes)
    table.row(state, fmt::format("{:.0f} ({}){}", *count, human_bytes(*bytes), note));
}

void add_gui(Table& table, const json::value& stats) {
  table.section("buffers shared with frontends");
  table.count("frontends", "gui.frontends");
  add_buffers(table, stats, "live", "", "");
  add_buffers(table, stats, "orphan", "", ", given up by the guest, kept by a frontend");
  add_buffers(table, stats, "freed", "_ended_total", "");
  add_buffers(table, stats, "revoked", "_ended_total", ", kept for too long");
  add_buffers(table, stats, "leaked", "_ended_total", ", the host refused");
  table.count("frames sent", "gui.frames_total");
}

void add_decisions(Table& table, const json::value& stats) {
  table.section("governor");
  if (number_at(stats, "governor.steps_total").value_or(1) > 0) {  // else it never looked
    if (const auto price = number_at(stats, "governor.price_ratio"))
      table.row("price of memory",
                fmt::format("{:.2f} (0: the host has plenty, 1: it has none)", *price));
    if (number_at(stats, "governor.pressure").value_or(0) > 0)
      table.row("the host", "is under memory pressure");
    table.bytes("the guest needs", "governor.need_bytes");
  }
  const json::value* const decisions = find_path(stats, "decisions");
  if (decisions == nullptr || !decisions->is_array()) return;
  size_t left = kDecisionsShown;
  for (const json::value& decision : decisions->get_array()) {
    if (left-- == 0) break;
    table.row(fmt::format("{} ago", human_uptime(number_at(decision, "age_s").value_or(0))),
              printable(text_at(decision, "text")));
  }
}

}  // namespace

std::string stats_table(const json::value& state, const json::value& stats) {
  std::string head = fmt::format(
      "{}: {}, process {:.0f}, up {}, {:.0f} vCPU{}", printable(text_at(state, "name")),
      printable(text_at(state, "state")), number_at(state, "pid").value_or(0),
      human_uptime(number_at(state, "uptime_s").value_or(0)), number_at(state, "cpus").value_or(0),
      number_at(state, "cpus").value_or(0) == 1 ? "" : "s");
  if (const double boots = number_at(state, "boots").value_or(1); boots > 1)
    head += fmt::format(", started {:.0f} times", boots);
  Table table(stats);
  add_memory(table, stats);
  add_gui(table, stats);
  add_decisions(table, stats);
  return head + "\n" + table.take();
}

}  // namespace lethe
