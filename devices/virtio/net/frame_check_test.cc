// Which headers a driver may put before a frame.
#include "devices/virtio/net/frame_check.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace lethe {
namespace {

constexpr uint64_t kAll = ~uint64_t{0};
constexpr uint32_t kMax = kNetFrameBytesMax;

virtio_net_hdr_v1 partial(uint16_t start, uint16_t offset) {
  virtio_net_hdr_v1 header{};
  header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  header.csum_start = start;
  header.csum_offset = offset;
  return header;
}
virtio_net_hdr_v1 segments(uint8_t type, uint16_t size = 1448, uint16_t headers = 66) {
  virtio_net_hdr_v1 header = partial(34, 16);
  header.gso_type = type;
  header.gso_size = size;
  header.hdr_len = headers;
  return header;
}
bool good(const virtio_net_hdr_v1& header, uint64_t bytes, uint64_t features = kAll) {
  return check_frame(header, bytes, features, kMax) == nullptr;
}

TEST(FrameCheck, takes_frames_from_an_ethernet_header_to_the_limit) {
  EXPECT_FALSE(good({}, 0));
  EXPECT_FALSE(good({}, 13));
  EXPECT_TRUE(good({}, 14));
  EXPECT_TRUE(good({}, kMax));
  EXPECT_FALSE(good({}, kMax + 1));
  EXPECT_FALSE(good({}, uint64_t{1} << 32));
  EXPECT_NE(check_frame({}, 65536, kAll, 65535), nullptr) << "the other end's limit";
}

TEST(FrameCheck, refuses_a_checksum_beyond_the_frame) {
  EXPECT_TRUE(good(partial(34, 16), 60));
  EXPECT_TRUE(good(partial(42, 16), 60));
  EXPECT_FALSE(good(partial(43, 16), 60));
  EXPECT_FALSE(good(partial(60, 0), 60));
  EXPECT_FALSE(good(partial(65535, 65535), 60)) << "whose sum does not fit 16 bits";
  EXPECT_FALSE(good(partial(1, 65534), 60));
  EXPECT_FALSE(good(partial(65535, 1), 60));
}

TEST(FrameCheck, ignores_checksum_offsets_where_no_checksum_is_wanted) {
  virtio_net_hdr_v1 header = partial(65535, 65535);
  header.flags = 0;
  EXPECT_TRUE(good(header, 60));
}

TEST(FrameCheck, refuses_what_was_not_negotiated) {
  EXPECT_FALSE(good(partial(34, 16), 60, 0));
  for (const auto& [type, feature] :
       {std::pair{VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_F_HOST_TSO4},
        std::pair{VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_F_HOST_TSO6}}) {
    const auto header = segments(static_cast<uint8_t>(type));
    EXPECT_TRUE(good(header, 9000));
    EXPECT_FALSE(good(header, 9000, kAll & ~net_bit(static_cast<unsigned>(feature))));
    const auto ecn = segments(static_cast<uint8_t>(type | VIRTIO_NET_HDR_GSO_ECN));
    EXPECT_TRUE(good(ecn, 9000));
    EXPECT_FALSE(good(ecn, 9000, kAll & ~net_bit(VIRTIO_NET_F_HOST_ECN)));
  }
}

TEST(FrameCheck, refuses_unknown_segmentation) {
  for (int type = 1; type < 256; ++type) {
    const int plain = type & ~VIRTIO_NET_HDR_GSO_ECN;
    const bool known = plain == VIRTIO_NET_HDR_GSO_TCPV4 || plain == VIRTIO_NET_HDR_GSO_TCPV6;
    EXPECT_EQ(good(segments(static_cast<uint8_t>(type)), 9000), known) << type;
  }
}

TEST(FrameCheck, refuses_segments_that_make_no_sense) {
  EXPECT_FALSE(good(segments(VIRTIO_NET_HDR_GSO_TCPV4, 0), 9000)) << "of no bytes";
  EXPECT_FALSE(good(segments(VIRTIO_NET_HDR_GSO_TCPV4, 1448, 9001), 9000)) << "headers too long";
  EXPECT_TRUE(good(segments(VIRTIO_NET_HDR_GSO_TCPV4, 1448, 9000), 9000));
  auto header = segments(VIRTIO_NET_HDR_GSO_TCPV4);
  header.flags = 0;
  EXPECT_FALSE(good(header, 9000)) << "without a checksum";
}

RC_GTEST_PROP(FrameCheck, what_passes_points_into_the_frame, ()) {
  virtio_net_hdr_v1 header{};
  header.flags = *rc::gen::arbitrary<uint8_t>();
  header.gso_type = *rc::gen::element<uint8_t>(0, 1, 3, 4, 0x81, 0x84, 0xFF);
  header.hdr_len = *rc::gen::arbitrary<uint16_t>();
  header.gso_size = *rc::gen::arbitrary<uint16_t>();
  header.csum_start = *rc::gen::arbitrary<uint16_t>();
  header.csum_offset = *rc::gen::arbitrary<uint16_t>();
  const auto bytes = *rc::gen::inRange<uint64_t>(0, 70'000);
  if (!good(header, bytes)) return;
  RC_ASSERT(bytes >= kEthernetHeaderBytes && bytes <= kMax);
  if ((header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0)
    RC_ASSERT(uint64_t{header.csum_start} + header.csum_offset + 2 <= bytes);
  if (header.gso_type != 0) {
    RC_ASSERT((header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0);
    RC_ASSERT(header.gso_size > 0 && header.hdr_len <= bytes);
  }
}

}  // namespace
}  // namespace lethe
