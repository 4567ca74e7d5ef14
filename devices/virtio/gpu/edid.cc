#include "devices/virtio/gpu/edid.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string_view>

#include "base/assert.h"
#include "devices/gui/protocol.h"

namespace lethe {
namespace {

// Reduced blanking (VESA CVT 1.2): fixed horizontally, at least 460 us vertically.
constexpr uint32_t kHorizontalBlank = 160;
constexpr uint32_t kHorizontalFront = 48;
constexpr uint32_t kHorizontalSync = 32;
constexpr uint32_t kVerticalFront = 3;
constexpr uint32_t kVerticalSync = 6;
constexpr uint32_t kVerticalBack = 6;
constexpr uint32_t kRefreshHz = 60;
constexpr uint32_t kBlankMicroseconds = 460;
constexpr uint32_t kDetailedSideMax = 4095;     // 12 bits
constexpr uint32_t kDetailedClockMax = 0xffff;  // 10 kHz

struct Timing {
  uint32_t width;
  uint32_t height;
  uint32_t vertical_blank;
  uint32_t clock;  // 10 kHz
};

Timing timing(uint32_t width, uint32_t height) {
  // Lines that pass in the blanking's time, when a frame takes 1/60 s.
  const uint32_t frame_us = 1'000'000 / kRefreshHz;
  const uint32_t blank = std::max(height * kBlankMicroseconds / (frame_us - kBlankMicroseconds) + 1,
                                  kVerticalFront + kVerticalSync + kVerticalBack);
  const uint64_t pixels = uint64_t{width + kHorizontalBlank} * (height + blank) * kRefreshHz;
  return {width, height, blank, static_cast<uint32_t>((pixels + 5000) / 10'000)};
}

bool fits_detailed(const Timing& t) {
  return t.width <= kDetailedSideMax && t.height <= kDetailedSideMax &&
         t.clock <= kDetailedClockMax && t.vertical_blank <= kDetailedSideMax;
}

constexpr uint8_t low(uint32_t value) { return static_cast<uint8_t>(value); }
constexpr uint8_t high(uint32_t value) { return static_cast<uint8_t>(value >> 8); }

// Pixels at 96 a inch.
constexpr uint32_t millimetres(uint32_t pixels) { return pixels * 254 / 960; }

// E-EDID 1.4, 3.10.2: 18 bytes.
void write_detailed(std::span<uint8_t> at, const Timing& t) {
  const uint32_t mm_width = std::min(millimetres(t.width), kDetailedSideMax);
  const uint32_t mm_height = std::min(millimetres(t.height), kDetailedSideMax);
  at[0] = low(t.clock);
  at[1] = high(t.clock);
  at[2] = low(t.width);
  at[3] = low(kHorizontalBlank);
  at[4] = low(high(t.width) << 4 | high(kHorizontalBlank));
  at[5] = low(t.height);
  at[6] = low(t.vertical_blank);
  at[7] = low(high(t.height) << 4 | high(t.vertical_blank));
  at[8] = kHorizontalFront;
  at[9] = kHorizontalSync;
  at[10] = kVerticalFront << 4 | kVerticalSync;
  at[11] = 0;  // the high bits of the four above
  at[12] = low(mm_width);
  at[13] = low(mm_height);
  at[14] = low(high(mm_width) << 4 | high(mm_height));
  at[17] = 0x1a;  // digital, separate syncs: horizontal positive, vertical negative
}

// 3.10.3: a display descriptor with text, ended by a line feed and padded with spaces.
void write_text(std::span<uint8_t> at, uint8_t tag, std::string_view text) {
  std::fill(at.begin() + 5, at.begin() + 18, uint8_t{' '});
  at[3] = tag;
  std::memcpy(&at[5], text.data(), text.size());
  if (text.size() < 13) at[5 + text.size()] = '\n';
}

void write_checksum(std::span<uint8_t> block) {
  uint8_t sum = 0;
  for (size_t i = 0; i < block.size() - 1; ++i) sum = static_cast<uint8_t>(sum + block[i]);
  block[block.size() - 1] = static_cast<uint8_t>(0 - sum);
}

void write_base(std::span<uint8_t> block, const Timing& wanted, uint32_t output, bool extended) {
  const Timing first = fits_detailed(wanted) ? wanted : timing(1920, 1080);
  constexpr std::array<uint8_t, 8> kHeader{0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00};
  std::ranges::copy(kHeader, block.begin());
  // Manufacturer "LTH": 5 bits a letter, big endian (3.4.1).
  constexpr uint32_t kMaker = ('L' - '@') << 10 | ('T' - '@') << 5 | ('H' - '@');
  block[8] = high(kMaker);
  block[9] = low(kMaker);
  block[10] = 1;                // product
  block[12] = low(output + 1);  // serial number
  block[16] = 0xff;             // the year below is the model's
  block[17] = 2024 - 1990;
  block[18] = 1;  // version 1.4
  block[19] = 4;
  block[20] = 0xa5;  // digital, 8 bits a colour, DisplayPort
  block[21] = low(std::min(millimetres(first.width) / 10, 255U));
  block[22] = low(std::min(millimetres(first.height) / 10, 255U));
  block[23] = 120;   // gamma 2.2
  block[24] = 0x06;  // RGB 4:4:4, sRGB is the default, the first timing is the native one
  // 3.7: the primaries and the white of sRGB.
  constexpr std::array<uint8_t, 10> kColours{0xee, 0x91, 0xa3, 0x54, 0x4c,
                                             0x99, 0x26, 0x0f, 0x50, 0x54};
  std::ranges::copy(kColours, block.begin() + 25);
  block[35] = 0x21;                                               // 640x480 and 800x600, 60 Hz
  block[36] = 0x08;                                               // 1024x768, 60 Hz
  std::fill(block.begin() + 38, block.begin() + 54, uint8_t{1});  // no standard timings
  write_detailed(block.subspan(54, 18), first);
  write_text(block.subspan(72, 18), 0xfc, "Lethe");
  write_text(block.subspan(90, 18), 0xff,
             std::string_view("0123456789abcdef").substr(output % 16, 1));
  block[111] = 0x10;  // dummy descriptor
  block[126] = extended ? 1 : 0;
  write_checksum(block);
}

// DisplayID 1.3 in an EDID extension (tag 0x70): one section with one type I timing (4.4).
void write_displayid(std::span<uint8_t> block, const Timing& t) {
  constexpr uint8_t kTimingBytes = 20;
  constexpr size_t kSectionAt = 1;
  block[0] = 0x70;
  block[kSectionAt + 0] = 0x13;              // version 1.3
  block[kSectionAt + 1] = 3 + kTimingBytes;  // bytes of the data blocks
  block[kSectionAt + 2] = 3;                 // a display by itself
  block[kSectionAt + 4] = 0x03;              // type I timings
  block[kSectionAt + 6] = kTimingBytes;
  const auto at = block.subspan(kSectionAt + 7, kTimingBytes);
  const auto put = [&](size_t where, uint32_t value) {
    at[where] = low(value - 1);
    at[where + 1] = high(value - 1);
  };
  put(0, t.clock);
  at[2] = static_cast<uint8_t>((t.clock - 1) >> 16);
  at[3] = 0x88;  // preferred, progressive, aspect ratio undefined
  put(4, t.width);
  put(6, kHorizontalBlank);
  put(8, kHorizontalFront);
  at[9] |= 0x80;  // positive sync
  put(10, kHorizontalSync);
  put(12, t.height);
  put(14, t.vertical_blank);
  put(16, kVerticalFront);
  put(18, kVerticalSync);
  const size_t check_at = kSectionAt + 7 + kTimingBytes;
  write_checksum(block.subspan(kSectionAt, check_at + 1 - kSectionAt));
  write_checksum(block);
}

}  // namespace

Edid make_edid(uint32_t width, uint32_t height, uint32_t output) {
  LETHE_ASSERT(width > 0 && width <= gui::kSidePixelsMax);
  LETHE_ASSERT(height > 0 && height <= gui::kSidePixelsMax);
  const Timing wanted = timing(width, height);
  const bool extended = !fits_detailed(wanted);
  Edid edid;
  edid.size = extended ? 2 * kEdidBlockBytes : kEdidBlockBytes;
  write_base(std::span(edid.bytes).first(kEdidBlockBytes), wanted, output, extended);
  if (extended) write_displayid(std::span(edid.bytes).subspan(kEdidBlockBytes), wanted);
  return edid;
}

}  // namespace lethe
