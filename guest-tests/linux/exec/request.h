// The line by which a client asks the agent to run something: vmm/exec/protocol.h.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <tl/expected.hpp>

namespace lethe::exec {

struct Request {
  std::vector<std::string> run;                          // at least one
  std::vector<std::pair<std::string, std::string>> env;  // names without '='
  std::string cwd;                                       // empty: the agent's
  bool takes_stdin = false;
  std::chrono::milliseconds timeout{0};  // 0: none
};

// The error is one line for the client.
[[nodiscard]] tl::expected<Request, std::string> parse_request(std::string_view line);

}  // namespace lethe::exec
