// Packets over Unix sockets, with descriptors (unix(7), SCM_RIGHTS).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>

namespace lethe {

inline constexpr size_t kPacketDescriptorsMax = 253;  // SCM_MAX_FD: unix(7)

// Sends one packet, and at most kPacketDescriptorsMax descriptors with it. `flags`: sendmsg(2)'s;
// MSG_NOSIGNAL is added. What sendmsg() returns, errno with it. Any thread.
[[nodiscard]] ssize_t send_packet(int socket, std::span<const uint8_t> packet,
                                  std::span<const int> descriptors, int flags = 0);

}  // namespace lethe
