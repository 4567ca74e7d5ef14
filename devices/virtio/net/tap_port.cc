#include "devices/virtio/net/tap_port.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "devices/virtio/net/frame_check.h"

namespace lethe {
namespace {

constexpr const char* kTunDevice = "/dev/net/tun";
constexpr uint64_t kOffloads = net_bit(VIRTIO_NET_F_CSUM) | net_bit(VIRTIO_NET_F_HOST_TSO4) |
                               net_bit(VIRTIO_NET_F_HOST_TSO6) | net_bit(VIRTIO_NET_F_HOST_ECN) |
                               net_bit(VIRTIO_NET_F_GUEST_CSUM) | net_bit(VIRTIO_NET_F_GUEST_TSO4) |
                               net_bit(VIRTIO_NET_F_GUEST_TSO6) | net_bit(VIRTIO_NET_F_GUEST_ECN);

// With VIRTIO_F_VERSION_1 the header always has num_buffers.
Result<> set_header_size(int tap) {
  int size = sizeof(virtio_net_hdr_v1);
  if (::ioctl(tap, TUNSETVNETHDRSZ, &size) != 0)
    return host_error("TUNSETVNETHDRSZ: {}", errno_text(errno));
  return {};
}

Result<UniqueFd> open_queue(const std::string& name, bool several) {
  UniqueFd tap(::open(kTunDevice, O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!tap.valid())
    return host_error("tap '{}': cannot open {}: {}: without rights to it, use user = true", name,
                      kTunDevice, errno_text(errno));
  ifreq request{};
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_flags =
      static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (several ? IFF_MULTI_QUEUE : 0));
  if (::ioctl(tap.get(), TUNSETIFF, &request) != 0) {
    const int error = errno;
    return host_error(
        "tap '{0}': {1}{2}", name, errno_text(error),
        error == EPERM    ? fmt::format(": make it first, for this user: ip tuntap add dev {} mode "
                                           "tap user NAME{}",
                                        name, several ? " multi_queue" : "")
        : error == EINVAL ? fmt::format(": queues = 1 needs a tap made without multi_queue, more "
                                        "of them one made with it")
        : error == EBUSY  ? std::string(": another program has it")
                          : std::string());
  }
  return Result<UniqueFd>(std::move(tap));
}

}  // namespace

Result<std::vector<std::unique_ptr<NetPort>>> TapPort::open(const std::string& name,
                                                            uint16_t queues) {
  std::vector<std::unique_ptr<NetPort>> ports;
  for (uint16_t i = 0; i < queues; ++i) {
    LETHE_TRY_ASSIGN(UniqueFd tap, open_queue(name, queues > 1));
    LETHE_TRY(set_header_size(tap.get()));
    ports.push_back(std::unique_ptr<NetPort>(new TapPort(std::move(tap), true, queues > 1)));
  }
  return Result<std::vector<std::unique_ptr<NetPort>>>(std::move(ports));
}

Result<std::unique_ptr<NetPort>> TapPort::adopt(UniqueFd tap) {
  ifreq request{};
  if (::ioctl(tap.get(), TUNGETIFF, &request) != 0)
    return host_error("descriptor {} is no tap: {}", tap.get(), errno_text(errno));
  const auto flags = static_cast<uint16_t>(request.ifr_flags);
  if ((flags & IFF_TAP) == 0 || (flags & IFF_NO_PI) == 0)
    return host_error("descriptor {} must be a tap's, opened with IFF_TAP and IFF_NO_PI",
                      tap.get());
  const bool header = (flags & IFF_VNET_HDR) != 0;
  if (header) LETHE_TRY(set_header_size(tap.get()));
  (void)::fcntl(tap.get(), F_SETFL, ::fcntl(tap.get(), F_GETFL) | O_NONBLOCK);
  (void)::fcntl(tap.get(), F_SETFD, FD_CLOEXEC);
  return std::unique_ptr<NetPort>(
      new TapPort(std::move(tap), header, (flags & IFF_MULTI_QUEUE) != 0));
}

uint64_t TapPort::offloads() const { return x_header ? kOffloads : 0; }

uint32_t TapPort::frame_bytes_max() const { return kNetFrameBytesMax; }

void TapPort::set_guest_offloads(uint64_t features) {
  if (!x_header) return;
  const auto has = [features](unsigned feature) { return (features & net_bit(feature)) != 0; };
  unsigned long flags = 0;
  // The kernel refuses segments without checksums, as 5.1.3.1 does.
  if (has(VIRTIO_NET_F_GUEST_CSUM)) {
    flags |= TUN_F_CSUM;
    if (has(VIRTIO_NET_F_GUEST_TSO4)) flags |= TUN_F_TSO4;
    if (has(VIRTIO_NET_F_GUEST_TSO6)) flags |= TUN_F_TSO6;
    if (has(VIRTIO_NET_F_GUEST_ECN) && (flags & (TUN_F_TSO4 | TUN_F_TSO6)) != 0)
      flags |= TUN_F_TSO_ECN;
  }
  if (::ioctl(x_tap.get(), TUNSETOFFLOAD, flags) != 0)
    LETHE_LOG_LIMITED(LogModule::kNet, "TUNSETOFFLOAD {:#x}: {}", flags, errno_text(errno));
}

void TapPort::set_active(bool active) {
  if (!x_several || active == x_active) return;
  ifreq request{};
  request.ifr_flags = active ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE;
  if (::ioctl(x_tap.get(), TUNSETQUEUE, &request) == 0)
    x_active = active;
  else
    LETHE_LOG_LIMITED(LogModule::kNet, "TUNSETQUEUE: {}", errno_text(errno));
}

NetPort::Sent TapPort::send(std::span<NetFrame> frames) {
  Sent sent;
  for (NetFrame& frame : frames) {
    // Flags that the kernel does not know are not its business (5.1.6.2.2).
    frame.header.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
    frame.vectors[0] = {.iov_base = &frame.header, .iov_len = sizeof frame.header};
    const std::span<iovec> vectors = x_header ? frame.vectors : frame.vectors.subspan(1);
    ssize_t result = 0;
    do {
      result = ::writev(x_tap.get(), vectors.data(), static_cast<int>(vectors.size()));
    } while (result < 0 && errno == EINTR);
    if (result < 0 && errno == EAGAIN) {
      sent.state = NetIoState::kWouldBlock;
      return sent;
    }
    if (result < 0 && errno == EBADFD) {
      sent.state = NetIoState::kLost;  // the interface was deleted
      return sent;
    }
    // EIO: the interface is down; EINVAL: the kernel takes the header for wrong. Frames get lost on
    // networks.
    if (result < 0) ++sent.failed;
    ++sent.taken;
  }
  return sent;
}

NetPort::Received TapPort::receive(std::span<const iovec> room) {
  x_vectors.assign(room.begin(), room.end());
  size_t room_bytes = 0;
  for (const iovec& vector : room) room_bytes += vector.iov_len;
  // The kernel cuts what does not fit, without a word: one byte more tells.
  uint8_t beyond = 0;
  x_vectors.push_back({.iov_base = &beyond, .iov_len = 1});
  for (;;) {
    const ssize_t result =
        ::readv(x_tap.get(), x_vectors.data(), static_cast<int>(x_vectors.size()));
    if (result < 0 && errno == EINTR) continue;
    if (result < 0)
      return {.state = errno == EAGAIN ? NetIoState::kWouldBlock : NetIoState::kLost,
              .bytes = 0,
              .truncated = false};
    const auto bytes = static_cast<size_t>(result);
    return {.state = NetIoState::kDone, .bytes = bytes, .truncated = bytes > room_bytes};
  }
}

NetIoState TapPort::skip() {
  std::array<uint8_t, sizeof(virtio_net_hdr_v1) + 1> cut{};
  const iovec vector{.iov_base = cut.data(), .iov_len = cut.size()};
  return receive({&vector, 1}).state;
}

}  // namespace lethe
