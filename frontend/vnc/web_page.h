// The page that lethe-vnc serves: noVNC's RFB in a bare page.
#pragma once

#include <string_view>

namespace lethe::gui {

extern const std::string_view kPageHtml;    // "/"
extern const std::string_view kPageScript;  // "/lethe.js"

}  // namespace lethe::gui
