#include "vmm/cli/top_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include "vmm/cli/vm_client.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace json = boost::json;

namespace {

constexpr size_t kNameWidthMax = 24;

std::string last_decision(const json::value& stats) {
  const json::value* const decisions = find_path(stats, "decisions");
  if (decisions == nullptr || !decisions->is_array() || decisions->get_array().empty()) return {};
  return printable(text_at(decisions->get_array().front(), "text"));
}

// Terminals count characters, and all of ours are single bytes: printable() saw to it.
std::string cut(std::string line, size_t columns) {
  if (columns != 0 && line.size() > columns) line.resize(columns);
  return line;
}

}  // namespace

TopRow TopSampler::sample(const std::string& name, const json::value& state,
                          const json::value& stats, Clock::time_point now) {
  TopRow row;
  row.name = name;
  row.uptime_s = number_at(state, "uptime_s").value_or(0);
  row.size = number_at(stats, "memory.size_bytes").value_or(0);
  row.resident = number_at(stats, "memory.resident_bytes").value_or(0);
  row.process = number_at(stats, "process.resident_bytes").value_or(0);
  row.guest_free = number_at(stats, "guest.memory_statistic.free_bytes");
  row.returned = sum_at(stats, "return.reported_bytes_total").value_or(0);
  row.pool = sum_at(stats, "pool.bytes").value_or(0);
  row.target = number_at(stats, "balloon.target_bytes").value_or(0);
  row.decision = last_decision(stats);
  const Last now_seen{now, number_at(state, "pid").value_or(0),
                      number_at(stats, "process.cpu_seconds").value_or(0), row.returned};
  const auto before = x_last.find(name);
  if (before != x_last.end() && before->second.pid == now_seen.pid && now > before->second.when) {
    const double seconds = std::chrono::duration<double>(now - before->second.when).count();
    row.cpu_percent = 100 * (now_seen.cpu_s - before->second.cpu_s) / seconds;
    row.returned_per_s = (row.returned - before->second.returned) / seconds;
  } else if (row.uptime_s > 0) {
    row.cpu_percent = 100 * now_seen.cpu_s / row.uptime_s;
    row.returned_per_s = row.returned / row.uptime_s;
  }
  // A guest that restarted counts from 0 again.
  row.returned_per_s = std::max(row.returned_per_s, 0.0);
  x_last[name] = now_seen;
  return row;
}

void sort_rows(std::vector<TopRow>& rows, TopSort by) {
  std::sort(rows.begin(), rows.end(), [by](const TopRow& a, const TopRow& b) {
    const auto key = [by](const TopRow& row) {
      if (by == TopSort::kResident) return row.process;
      if (by == TopSort::kCpu) return row.cpu_percent;
      return by == TopSort::kReturned ? row.returned : 0;
    };
    return key(a) != key(b) ? key(a) > key(b) : a.name < b.name;
  });
}

std::string top_json(std::span<const TopRow> rows) {
  json::array array;
  for (const TopRow& row : rows) {
    if (!row.problem.empty()) {
      array.push_back(json::object{{"name", row.name}, {"problem", row.problem}});
      continue;
    }
    const auto bytes = [](double number) { return static_cast<uint64_t>(number); };
    array.push_back(json::object{
        {"name", row.name},
        {"uptime_s", row.uptime_s},
        {"cpu_percent", row.cpu_percent},
        {"memory_bytes", bytes(row.size)},
        {"resident_bytes", bytes(row.resident)},
        {"process_bytes", bytes(row.process)},
        {"guest_free_bytes", row.guest_free ? json::value(bytes(*row.guest_free)) : json::value()},
        {"returned_bytes", bytes(row.returned)},
        {"returned_bytes_per_s", row.returned_per_s},
        {"pool_bytes", bytes(row.pool)},
        {"balloon_bytes", bytes(row.target)},
        {"decision", row.decision}});
  }
  return json::serialize(array) + "\n";
}

std::string top_table(std::span<const TopRow> rows, size_t columns, size_t lines, bool highlight) {
  double process = 0;
  double returned = 0;
  size_t width = 4;
  for (const TopRow& row : rows) {
    process += row.process;
    returned += row.returned;
    width = std::max(width, std::min(row.name.size(), kNameWidthMax));
  }
  std::string text =
      cut(fmt::format("{} VM{}, {} at the host, {} returned by guests", rows.size(),
                      rows.size() == 1 ? "" : "s", human_bytes(process), human_bytes(returned)),
          columns) +
      "\n";
  const std::string head =
      cut(fmt::format("{:<{}}  {:>11} {:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}  {}",
                      "NAME", width, "UP", "CPU%", "MEMORY", "RESIDENT", "FREE", "RETURNED",
                      "PER S", "POOL", "BALLOON", "LAST DECISION"),
          columns);
  text += highlight ? fmt::format("\x1b[7m{:<{}}\x1b[0m\n", head, columns) : head + "\n";
  size_t left = lines == 0 ? rows.size() : lines - std::min<size_t>(lines, 2);
  for (const TopRow& row : rows) {
    if (left-- == 0) break;
    const std::string name = row.name.substr(0, width);
    if (!row.problem.empty()) {
      text += cut(fmt::format("{:<{}}  {}", name, width, row.problem), columns) + "\n";
      continue;
    }
    text += cut(fmt::format(
                    "{:<{}}  {:>11} {:>6.1f} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}  {}",
                    name, width, human_uptime(row.uptime_s), row.cpu_percent, human_bytes(row.size),
                    human_bytes(row.resident), row.guest_free ? human_bytes(*row.guest_free) : "-",
                    human_bytes(row.returned), human_bytes(row.returned_per_s),
                    human_bytes(row.pool), human_bytes(row.target), row.decision),
                columns) +
            "\n";
  }
  return text;
}

}  // namespace lethe
