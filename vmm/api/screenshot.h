// A screen's pixels as a PNG file.
#pragma once

#include <string>

#include "base/result.h"
#include "devices/gui/gui.h"

namespace lethe {

// Reads the pixels by copies, which a buffer that is revoked meanwhile ends with an error, and
// writes them opaque, without the cursor. Takes some 0.1 s for a screen of 4K: not for the main
// loop. Memory: the picture once, and the file. Any thread. Errors are one line.
[[nodiscard]] Result<std::string> make_png(const ScreenView& screen);

}  // namespace lethe
