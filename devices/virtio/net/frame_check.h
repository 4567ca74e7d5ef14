// What a driver may write in front of a frame it sends (virtio 1.2, 5.1.6.2).
#pragma once

#include "devices/virtio/net/net_uapi.h"

#include <cstdint>

namespace lethe {

inline constexpr uint32_t kEthernetHeaderBytes = 14;
inline constexpr uint32_t kVlanTagBytes = 4;
// The largest IP packet with its Ethernet header and a VLAN tag: what segmentation starts from.
inline constexpr uint32_t kNetFrameBytesMax = 65535 + kEthernetHeaderBytes + kVlanTagBytes;

[[nodiscard]] constexpr uint64_t net_bit(unsigned feature) { return uint64_t{1} << feature; }

// Whether a frame of `frame_bytes` (without the header) may be sent so. `features`: the negotiated
// ones; `bytes_max`: the backend's limit. Null if it may, else why not, for the log. All of the
// header's offsets are within the frame if it may.
[[nodiscard]] const char* check_frame(const virtio_net_hdr_v1& header, uint64_t frame_bytes,
                                      uint64_t features, uint32_t bytes_max);

}  // namespace lethe
