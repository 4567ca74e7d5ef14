// What the commands that talk to a running VM share.
#pragma once

#include <boost/json/value.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "vmm/api/http_client.h"
#include "vmm/run_dir.h"

namespace lethe {

// GET `path` of the VM's control API: the JSON it answers with, whose depth and size are bounded.
// Errors are one line that names the VM.
[[nodiscard]] Result<std::string> get_text(const RunningVm& vm, std::string_view path,
                                           std::chrono::milliseconds patience = kClientPatience);
[[nodiscard]] Result<boost::json::value> parse_answer(const RunningVm& vm, std::string_view text);
[[nodiscard]] Result<boost::json::value> get_json(
    const RunningVm& vm, std::string_view path,
    std::chrono::milliseconds patience = kClientPatience);

// The text of {"error": TEXT}, or the HTTP status in words.
[[nodiscard]] std::string error_in(const ClientAnswer& answer);

// The value at a dotted path ("return.moved_bytes_total"), or null. Sum: a number, or the sum of
// all numbers below (a metric with labels).
[[nodiscard]] const boost::json::value* find_path(const boost::json::value& root,
                                                  std::string_view path);
[[nodiscard]] std::optional<double> number_at(const boost::json::value& root,
                                              std::string_view path);
[[nodiscard]] std::optional<double> sum_at(const boost::json::value& root, std::string_view path);
[[nodiscard]] std::string text_at(const boost::json::value& root, std::string_view path);

// "1.5 GiB", "12 MiB", "0"; "1.2 ms"; "3 d 4 h".
[[nodiscard]] std::string human_bytes(double bytes);
[[nodiscard]] std::string human_duration(double seconds);
[[nodiscard]] std::string human_uptime(double seconds);

}  // namespace lethe
