// The sockets that VNC clients connect to. One thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe::gui {

// A Unix stream socket, mode 0600, non-blocking. What a dead server left there is replaced; error
// (kHost): another one serves it, or the folder can't be written.
[[nodiscard]] Result<UniqueFd> listen_unix(const std::string& path);

// 127.0.0.1, non-blocking; `port` 0 takes a free one. Error (kHost): the port is taken.
[[nodiscard]] Result<UniqueFd> listen_loopback(uint16_t port);
[[nodiscard]] uint16_t port_of(int listener);

// The next connection, non-blocking; not valid: there is none, or no descriptor left.
[[nodiscard]] UniqueFd accept_from(int listener);

// A password's file: its first line, 1 to 8 characters (VNC's authentication has no more). Errors
// (kConfig): missing, too long, or others may read it.
[[nodiscard]] Result<std::string> read_password(const std::string& path);

}  // namespace lethe::gui
