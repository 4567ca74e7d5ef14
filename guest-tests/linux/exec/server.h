// Where the agent listens, and a process for each connection.
#pragma once

#include <cstdint>
#include <string>

#include <tl/expected.hpp>

#include "base/unique_fd.h"

namespace lethe::exec {

inline constexpr int kConnectionsMax = 64;

// A listening socket: vsock, of any CID of this guest; or a Unix socket, whose old file is removed.
[[nodiscard]] tl::expected<UniqueFd, std::string> listen_vsock(uint32_t port);
[[nodiscard]] tl::expected<UniqueFd, std::string> listen_unix(const std::string& path);

// Accepts for ever, and serves each client in a forked child; more than kConnectionsMax at a time
// are refused. On vsock only the host may connect: else any user of the guest could have commands
// run as root, by way of vsock's loopback. Returns only if accept() fails for good: why.
[[nodiscard]] std::string serve_all(UniqueFd listener);

}  // namespace lethe::exec
