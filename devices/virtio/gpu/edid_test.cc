// EDIDs, read back by a parser that knows only the standards' offsets.
#include "devices/virtio/gpu/edid.h"

#include <gtest/gtest.h>

#include <numeric>
#include <optional>
#include <span>

namespace lethe {
namespace {

struct Mode {
  uint32_t width = 0;
  uint32_t height = 0;
  uint32_t total_width = 0;
  uint32_t total_height = 0;
  uint64_t clock_hz = 0;
  [[nodiscard]] double refresh() const {
    return static_cast<double>(clock_hz) / (double(total_width) * double(total_height));
  }
};

uint8_t sum(std::span<const uint8_t> bytes) {
  return static_cast<uint8_t>(std::accumulate(bytes.begin(), bytes.end(), 0U));
}

// E-EDID 1.4, 3.10.2.
Mode detailed(std::span<const uint8_t> t) {
  Mode mode;
  mode.clock_hz = (t[0] | t[1] << 8) * uint64_t{10'000};
  mode.width = t[2] | (t[4] & 0xf0U) << 4;
  mode.height = t[5] | (t[7] & 0xf0U) << 4;
  mode.total_width = mode.width + (t[3] | (t[4] & 0xfU) << 8);
  mode.total_height = mode.height + (t[6] | (t[7] & 0xfU) << 8);
  return mode;
}

// DisplayID 1.3, 4.4.1; in an EDID extension.
std::optional<Mode> displayid_preferred(std::span<const uint8_t> block) {
  if (block[0] != 0x70 || block[1] >> 4 != 1) return std::nullopt;
  const std::span<const uint8_t> section = block.subspan(1);
  const size_t length = 4 + section[1] + size_t{1};
  if (length > block.size() - 2 || sum(section.first(length)) != 0) return std::nullopt;
  for (size_t at = 4; at + 3 < length - 1 && section[at + 2] > 0; at += 3 + section[at + 2]) {
    const auto t = section.subspan(at + 3, section[at + 2]);
    if (section[at] != 0x03 || t.size() != 20 || (t[3] & 0x80) == 0) continue;
    const auto word = [&](size_t i) { return (t[i] | (t[i + 1] & 0x7fU) << 8) + 1; };
    Mode mode;
    mode.clock_hz = (t[0] | t[1] << 8 | t[2] << 16) * uint64_t{10'000} + 10'000;
    mode.width = word(4);
    mode.height = word(12);
    mode.total_width = mode.width + word(6);
    mode.total_height = mode.height + word(14);
    return mode;
  }
  return std::nullopt;
}

// Checks what every block must have, and returns the mode that the screen prefers.
std::optional<Mode> preferred(const Edid& edid) {
  const std::span<const uint8_t> bytes = std::span(edid.bytes).first(edid.size);
  constexpr std::array<uint8_t, 8> kHeader{0, 255, 255, 255, 255, 255, 255, 0};
  if (bytes.size() % kEdidBlockBytes != 0 ||
      !std::equal(kHeader.begin(), kHeader.end(), bytes.begin()))
    return std::nullopt;
  for (size_t at = 0; at < bytes.size(); at += kEdidBlockBytes)
    if (sum(bytes.subspan(at, kEdidBlockBytes)) != 0) return std::nullopt;
  if (bytes[18] != 1 || bytes[19] != 4) return std::nullopt;                  // version
  if (bytes[126] != bytes.size() / kEdidBlockBytes - 1) return std::nullopt;  // extensions
  if (bytes.size() > kEdidBlockBytes)
    return displayid_preferred(bytes.subspan(kEdidBlockBytes, kEdidBlockBytes));
  return detailed(bytes.subspan(54, 18));
}

TEST(Edid, the_preferred_mode_is_the_one_asked_for) {
  for (const auto& [width, height] : std::vector<std::pair<uint32_t, uint32_t>>{{640, 480},
                                                                                {1280, 800},
                                                                                {1366, 768},
                                                                                {1920, 1080},
                                                                                {3840, 2160},
                                                                                {333, 777},
                                                                                {64, 64},
                                                                                {4095, 2000},
                                                                                {4096, 2160},
                                                                                {4095, 4095},
                                                                                {7680, 4320},
                                                                                {16384, 64},
                                                                                {64, 16384},
                                                                                {16384, 16384},
                                                                                {1, 1}}) {
    const auto mode = preferred(make_edid(width, height, 0));
    ASSERT_TRUE(mode) << width << "x" << height;
    EXPECT_EQ(mode->width, width);
    EXPECT_EQ(mode->height, height);
    EXPECT_GT(mode->total_width, width);
    EXPECT_GT(mode->total_height, height);
    // The clock has steps of 10 kHz: that shows in tiny modes only.
    EXPECT_NEAR(mode->refresh(), 60, width * height < 100'000 ? 3 : 0.1) << width << "x" << height;
  }
}

TEST(Edid, every_size_gives_a_valid_one) {
  for (uint32_t side = 1; side <= 16384; side += 7) {
    ASSERT_TRUE(preferred(make_edid(side, 1080, 0))) << side;
    ASSERT_TRUE(preferred(make_edid(1920, side, 1))) << side;
    ASSERT_EQ(preferred(make_edid(side, side, 2))->width, side);
  }
}

TEST(Edid, one_block_holds_what_it_can_and_more_takes_two) {
  EXPECT_EQ(make_edid(3840, 2160, 0).size, kEdidBlockBytes);
  EXPECT_EQ(make_edid(4096, 2160, 0).size, 2 * kEdidBlockBytes);
  // Its base block is complete by itself: 1920x1080.
  const Edid large = make_edid(8192, 8192, 0);
  EXPECT_EQ(detailed(std::span(large.bytes).subspan(54, 18)).width, 1920U);
}

TEST(Edid, screens_differ_in_their_serial_numbers) {
  EXPECT_NE(make_edid(640, 480, 0).bytes, make_edid(640, 480, 1).bytes);
}

TEST(Edid, descriptors_that_are_no_timings_start_with_zeros) {
  const Edid edid = make_edid(1280, 800, 0);
  for (const size_t at : {72U, 90U, 108U}) {
    EXPECT_EQ(edid.bytes[at], 0);
    EXPECT_EQ(edid.bytes[at + 1], 0);
    EXPECT_EQ(edid.bytes[at + 2], 0);
  }
  EXPECT_EQ(std::string_view(reinterpret_cast<const char*>(&edid.bytes[72 + 5]), 5), "Lethe");
}

}  // namespace
}  // namespace lethe
