// Unix sockets by path (unix(7)). Any thread.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

// The longest path, in bytes, that a sockaddr_un has room for.
inline constexpr size_t kUnixPathMax = sizeof(sockaddr_un::sun_path) - 1;

// connect(2) to the socket at `path`: 0, or -1 with errno; ENAMETOOLONG for a path longer than
// kUnixPathMax. A full backlog is EAGAIN for a non-blocking `fd`, and there is nothing to poll for
// then.
[[nodiscard]] int connect_unix(int fd, std::string_view path);

// A listening, non-blocking socket of type `type`, mode 0600, at `path`, which must not exist.
// Errors name the path.
[[nodiscard]] Result<UniqueFd> listen_unix(const std::string& path, int type = SOCK_STREAM);

}  // namespace lethe
