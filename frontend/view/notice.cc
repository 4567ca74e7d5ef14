#include "frontend/view/notice.h"

#include <algorithm>
#include <cctype>
#include <string_view>

namespace lethe::gui {
namespace {

constexpr int kRows = 7, kColumns = 5, kAdvance = kColumns + 1;
constexpr int kLargest = 4;  // pixels of a square

// Each letter's rows from the top, '#' is set. In the order of kLetters.
constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-'()";
constexpr std::string_view kShapes[] = {
    " ### #   ##   #######   ##   ##   #", "#### #   ##   ##### #   ##   ##### ",
    " #####    #    #    #    #     ####", "#### #   ##   ##   ##   ##   ##### ",
    "######    #    #### #    #    #####", "######    #    #### #    #    #    ",
    " #####    #    #  ###   ##   # ####", "#   ##   ##   #######   ##   ##   #",
    " ###   #    #    #    #    #   ### ", "    #    #    #    #    ##   # ### ",
    "#   ##  # # #  ##   # #  #  # #   #", "#    #    #    #    #    #    #####",
    "#   ### ### # ## # ##   ##   ##   #", "#   ###  ## # ## # ##  ###   ##   #",
    " ### #   ##   ##   ##   ##   # ### ", "#### #   ##   ##### #    #    #    ",
    " ### #   ##   ##   ## # ##  #  ## #", "#### #   ##   ##### # #  #  # #   #",
    " #####    #     ###     #    ##### ", "#####  #    #    #    #    #    #  ",
    "#   ##   ##   ##   ##   ##   # ### ", "#   ##   ##   ##   ##   # # #   #  ",
    "#   ##   ##   ## # ## # ### ###   #", "#   ##   # # #   #   # # #   ##   #",
    "#   ##   # # #   #    #    #    #  ", "#####    #   #   #   #   #    #####",
    " ### #   ##  ### # ###  ##   # ### ", "  #   ##    #    #    #    #   ### ",
    " ### #   #    #   #   #   #   #####", "#####   #   #     #     ##   # ### ",
    "   #   ##  # # #  # #####   #    # ", "######    ####     #    ##   # ### ",
    "  ##  #   #    #### #   ##   # ### ", "#####    #   #   #   #    #    #   ",
    " ### #   ##   # ### #   ##   # ### ", " ### #   ##   # ####    #   #  ##  ",
    "                            ##   ##", "                       ##   #   #  ",
    "       #    #         #    #       ", "               #####               ",
    "  #    #   #                       ", "   #   #   #    #    #     #     # ",
    " #     #     #    #    #   #   #   ",
};

void draw_letter(SDL_Renderer* renderer, char letter, int x, int y, int square) {
  const size_t index = kLetters.find(letter);
  if (index == std::string_view::npos) return;
  const std::string_view shape = kShapes[index];
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] != '#') continue;
    const SDL_Rect rect{x + static_cast<int>(i) % kColumns * square,
                        y + static_cast<int>(i) / kColumns * square, square, square};
    SDL_RenderFillRect(renderer, &rect);
  }
}

}  // namespace

void draw_notice(SDL_Renderer* renderer, const std::string& text, int width, int height) {
  const int squares = static_cast<int>(text.size()) * kAdvance + 2;
  const int square = std::clamp(width / std::max(1, squares), 1, kLargest);
  const SDL_Rect bar{0, height / 2 - kRows * square, width, 2 * kRows * square};
  SDL_SetRenderDrawBlendMode(renderer, SDL_BLENDMODE_BLEND);
  SDL_SetRenderDrawColor(renderer, 0, 0, 0, 200);
  SDL_RenderFillRect(renderer, &bar);
  SDL_SetRenderDrawBlendMode(renderer, SDL_BLENDMODE_NONE);
  SDL_SetRenderDrawColor(renderer, 255, 220, 120, 255);
  int x = (width - squares * square) / 2 + square;
  for (const char c : text) {
    draw_letter(renderer, static_cast<char>(std::toupper(static_cast<unsigned char>(c))), x,
                bar.y + kRows * square / 2, square);
    x += kAdvance * square;
  }
}

}  // namespace lethe::gui
