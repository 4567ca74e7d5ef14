#include "devices/virtio/net/frame_check.h"

namespace lethe {
namespace {

constexpr uint32_t kChecksumBytes = 2;

// Which feature lets the driver send segments of this type; 0: no feature of ours.
uint64_t feature_of(uint8_t gso_type) {
  switch (gso_type) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
      return net_bit(VIRTIO_NET_F_HOST_TSO4);
    case VIRTIO_NET_HDR_GSO_TCPV6:
      return net_bit(VIRTIO_NET_F_HOST_TSO6);
    default:
      return 0;
  }
}

const char* check_segmentation(const virtio_net_hdr_v1& header, uint64_t frame_bytes,
                               uint64_t features) {
  const auto type = static_cast<uint8_t>(header.gso_type & ~VIRTIO_NET_HDR_GSO_ECN);
  if ((features & feature_of(type)) == 0) return "segmentation that was not negotiated";
  if ((header.gso_type & VIRTIO_NET_HDR_GSO_ECN) != 0 &&
      (features & net_bit(VIRTIO_NET_F_HOST_ECN)) == 0)
    return "segmentation with ECN, which was not negotiated";
  // 5.1.6.2.1: who wants segments wants their checksums too.
  if ((header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0) return "segmentation without checksum";
  if (header.gso_size == 0) return "segments of no bytes";
  // A hint, but one that the host's kernel takes for the length of the headers.
  if (header.hdr_len > frame_bytes) return "headers longer than the frame";
  return nullptr;
}

}  // namespace

const char* check_frame(const virtio_net_hdr_v1& header, uint64_t frame_bytes, uint64_t features,
                        uint32_t bytes_max) {
  if (frame_bytes < kEthernetHeaderBytes) return "a frame shorter than its Ethernet header";
  if (frame_bytes > bytes_max) return "a frame that is too long";
  if ((header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0) {
    if ((features & net_bit(VIRTIO_NET_F_CSUM)) == 0) return "a checksum that was not negotiated";
    // In 64 bits: the sum of the two may be more than 65535.
    const uint64_t end = uint64_t{header.csum_start} + header.csum_offset + kChecksumBytes;
    if (end > frame_bytes) return "a checksum beyond the frame";
  }
  if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE) return nullptr;
  return check_segmentation(header, frame_bytes, features);
}

}  // namespace lethe
