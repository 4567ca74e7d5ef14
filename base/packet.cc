#include "base/packet.h"

#include <sys/socket.h>

#include <cstring>

#include "base/assert.h"

namespace lethe {

ssize_t send_packet(int socket, std::span<const uint8_t> packet, std::span<const int> descriptors,
                    int flags) {
  LETHE_ASSERT(descriptors.size() <= kPacketDescriptorsMax);
  // SAFETY: an iovec has no const, and sendmsg() only reads.
  iovec part{.iov_base = const_cast<uint8_t*>(packet.data()), .iov_len = packet.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kPacketDescriptorsMax * sizeof(int))];
  if (!descriptors.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    std::memset(control, 0, header.msg_controllen);
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size_bytes());
  }
  return ::sendmsg(socket, &header, flags | MSG_NOSIGNAL);
}

}  // namespace lethe
