// `lethe stats` for people: the control API's /state and /stats as a table.
#pragma once

#include <boost/json/value.hpp>
#include <string>

namespace lethe {

// Lines with newlines. What the VM does not tell (no balloon, no pool) is left out.
[[nodiscard]] std::string stats_table(const boost::json::value& state,
                                      const boost::json::value& stats);

}  // namespace lethe
