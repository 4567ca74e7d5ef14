// One connection of the agent: a request, its command, its frames. Blocking, one thread.
#pragma once

#include <chrono>

#include "base/unique_fd.h"

namespace lethe::exec {

inline constexpr std::chrono::milliseconds kRequestPatience{10'000};  // for the whole line

// Serves one client, from its request to its end; returns when the command has ended and the client
// has been told, or when the client has gone and the command was killed. Holds at most three frames
// in memory, whatever client and command do. The process ignores SIGPIPE from then on.
void serve(UniqueFd socket, std::chrono::milliseconds request_patience = kRequestPatience);

// Tells the client, in one frame, why nothing is run.
void refuse(const UniqueFd& socket, const char* why);

}  // namespace lethe::exec
