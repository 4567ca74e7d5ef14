// PNG files to pictures and back. Any thread.
#pragma once

#include <string>

#include "base/result.h"
#include "frontend/picture.h"

namespace lethe::gui {

// 8 bits RGB. The file appears whole or not at all (written beside it and renamed).
[[nodiscard]] Result<> write_png(const std::string& path, const Picture& picture);

// Any PNG of at most kSidePixelsMax a side; alpha is left out. Error (kConfig): missing or no PNG.
[[nodiscard]] Result<Picture> read_png(const std::string& path);

}  // namespace lethe::gui
