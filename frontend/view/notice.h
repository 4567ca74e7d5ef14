// A line of text over a window's picture, without any font file. Main thread.
#pragma once

#include <SDL2/SDL_render.h>

#include <string>

namespace lethe::gui {

// In a dark bar across the middle; letters of 5x7 squares, as large as fits. Upper case, digits and
// a few signs; everything else is a gap.
void draw_notice(SDL_Renderer* renderer, const std::string& text, int width, int height);

}  // namespace lethe::gui
