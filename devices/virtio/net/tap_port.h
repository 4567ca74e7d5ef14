// A queue of a tap device (Linux, Documentation/networking/tuntap.rst; linux/if_tun.h).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "devices/virtio/net/net_port.h"

namespace lethe {

// Threading: one thread; made on any.
class TapPort final : public NetPort {
 public:
  // Opens `queues` queues of the tap called `name`; a tap that is not there is made if the process
  // may (CAP_NET_ADMIN), and goes away with it. Errors (kHost) name the tap and the way out.
  [[nodiscard]] static Result<std::vector<std::unique_ptr<NetPort>>> open(const std::string& name,
                                                                          uint16_t queues);
  // An open tap's queue, as somebody else has set it up: with IFF_VNET_HDR it has offloads, without
  // it has none. Fails if it is no tap.
  [[nodiscard]] static Result<std::unique_ptr<NetPort>> adopt(UniqueFd tap);

  [[nodiscard]] int fd() const override { return x_tap.get(); }
  [[nodiscard]] uint64_t offloads() const override;
  [[nodiscard]] bool has_header() const override { return x_header; }
  [[nodiscard]] uint32_t frame_bytes_max() const override;
  void set_guest_offloads(uint64_t features) override;
  void set_active(bool active) override;
  [[nodiscard]] Sent send(std::span<NetFrame> frames) override;
  [[nodiscard]] Next next() override { return {}; }
  [[nodiscard]] Received receive(std::span<const iovec> room) override;
  [[nodiscard]] NetIoState skip() override;

 private:
  TapPort(UniqueFd tap, bool header, bool several)
      : x_tap(std::move(tap)), x_header(header), x_several(several) {}
  UniqueFd x_tap;
  const bool x_header;   // IFF_VNET_HDR
  const bool x_several;  // IFF_MULTI_QUEUE
  bool x_active = true;
  std::vector<iovec> x_vectors;
};

}  // namespace lethe
