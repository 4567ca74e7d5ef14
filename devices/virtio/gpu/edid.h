// What a screen says of itself: an EDID (VESA E-EDID 1.4) of one or two blocks.
//
// The first block's detailed timing holds up to 4095 pixels a side and a pixel clock of 655.35 MHz.
// Larger modes come in a DisplayID 1.3 block behind it (type I timing, preferred), which Linux
// reads too; the first block offers 1920x1080 then.
#pragma once

#include <array>
#include <cstdint>

namespace lethe {

inline constexpr uint32_t kEdidBlockBytes = 128;

struct Edid {
  std::array<uint8_t, 2 * kEdidBlockBytes> bytes{};
  uint32_t size = 0;  // kEdidBlockBytes, or twice that
};

// The preferred mode is width x height (1 to 16384 pixels) at 60 Hz, with reduced blanking.
// `output` counts from 0 and makes the serial number, so that guests tell screens apart.
[[nodiscard]] Edid make_edid(uint32_t width, uint32_t height, uint32_t output);

}  // namespace lethe
