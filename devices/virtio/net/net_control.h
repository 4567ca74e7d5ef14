// The control queue of a network device (virtio 1.2, 5.1.6.5).
#pragma once

#include "devices/virtio/net/net_uapi.h"

#include <array>
#include <cstdint>

#include "devices/virtio/queue.h"

namespace lethe {

using MacAddress = std::array<uint8_t, 6>;

// What commands do. Threading: the control queue's thread.
class NetCommands {
 public:
  virtual ~NetCommands() = default;
  virtual void set_mac(const MacAddress& mac) = 0;
  virtual void set_pairs(uint16_t pairs) = 0;              // 1 to pairs_max
  virtual void set_guest_offloads(uint64_t features) = 0;  // of those negotiated
  virtual void announced() = 0;
};

// Runs the command in `chain` and writes its status. False if it was refused: VIRTIO_NET_ERR, or
// no status at all where there is no room for one. `features`: the negotiated ones; what they do
// not include is refused. The chain is not completed; `written` is for that.
[[nodiscard]] bool run_command(const Chain& chain, uint64_t features, uint16_t pairs_max,
                               NetCommands& commands, uint32_t& written);

}  // namespace lethe
