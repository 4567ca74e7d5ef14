#include "frontend/vnc/keysyms.h"

#include <linux/input-event-codes.h>
#include <rfb/keysym.h>

#include <algorithm>
#include <array>

namespace lethe::gui {
namespace {

struct Pair {
  uint32_t keysym;
  uint32_t code;
};
// In rfb/keysym.h it is missing: a level of a layout beyond Shift.
constexpr uint32_t kIsoLevel3Shift = 0xFE03;

#define LETHE_KEY(keysym, key) {XK_##keysym, KEY_##key}
constexpr auto kPairs = std::to_array<Pair>({
    LETHE_KEY(BackSpace, BACKSPACE),
    LETHE_KEY(Tab, TAB),
    {0xFE20, KEY_TAB},
    LETHE_KEY(Return, ENTER),
    LETHE_KEY(Linefeed, LINEFEED),
    LETHE_KEY(Pause, PAUSE),
    LETHE_KEY(Scroll_Lock, SCROLLLOCK),
    LETHE_KEY(Sys_Req, SYSRQ),
    LETHE_KEY(Escape, ESC),
    LETHE_KEY(Delete, DELETE),
    LETHE_KEY(Home, HOME),
    LETHE_KEY(Left, LEFT),
    LETHE_KEY(Up, UP),
    LETHE_KEY(Right, RIGHT),
    LETHE_KEY(Down, DOWN),
    LETHE_KEY(Page_Up, PAGEUP),
    LETHE_KEY(Page_Down, PAGEDOWN),
    LETHE_KEY(End, END),
    LETHE_KEY(Print, SYSRQ),
    LETHE_KEY(Insert, INSERT),
    LETHE_KEY(Undo, UNDO),
    LETHE_KEY(Menu, COMPOSE),
    LETHE_KEY(Help, HELP),
    LETHE_KEY(Break, PAUSE),
    LETHE_KEY(Mode_switch, RIGHTALT),
    LETHE_KEY(Num_Lock, NUMLOCK),
    LETHE_KEY(KP_Enter, KPENTER),
    LETHE_KEY(KP_Home, KP7),
    LETHE_KEY(KP_Left, KP4),
    LETHE_KEY(KP_Up, KP8),
    LETHE_KEY(KP_Right, KP6),
    LETHE_KEY(KP_Down, KP2),
    LETHE_KEY(KP_Page_Up, KP9),
    LETHE_KEY(KP_Page_Down, KP3),
    LETHE_KEY(KP_End, KP1),
    LETHE_KEY(KP_Begin, KP5),
    LETHE_KEY(KP_Insert, KP0),
    LETHE_KEY(KP_Delete, KPDOT),
    LETHE_KEY(KP_Equal, KPEQUAL),
    LETHE_KEY(KP_Multiply, KPASTERISK),
    LETHE_KEY(KP_Add, KPPLUS),
    LETHE_KEY(KP_Separator, KPCOMMA),
    LETHE_KEY(KP_Subtract, KPMINUS),
    LETHE_KEY(KP_Decimal, KPDOT),
    LETHE_KEY(KP_Divide, KPSLASH),
    LETHE_KEY(KP_0, KP0),
    LETHE_KEY(KP_1, KP1),
    LETHE_KEY(KP_2, KP2),
    LETHE_KEY(KP_3, KP3),
    LETHE_KEY(KP_4, KP4),
    LETHE_KEY(KP_5, KP5),
    LETHE_KEY(KP_6, KP6),
    LETHE_KEY(KP_7, KP7),
    LETHE_KEY(KP_8, KP8),
    LETHE_KEY(KP_9, KP9),
    LETHE_KEY(F1, F1),
    LETHE_KEY(F2, F2),
    LETHE_KEY(F3, F3),
    LETHE_KEY(F4, F4),
    LETHE_KEY(F5, F5),
    LETHE_KEY(F6, F6),
    LETHE_KEY(F7, F7),
    LETHE_KEY(F8, F8),
    LETHE_KEY(F9, F9),
    LETHE_KEY(F10, F10),
    LETHE_KEY(F11, F11),
    LETHE_KEY(F12, F12),
    LETHE_KEY(F13, F13),
    LETHE_KEY(F14, F14),
    LETHE_KEY(F15, F15),
    LETHE_KEY(F16, F16),
    LETHE_KEY(F17, F17),
    LETHE_KEY(F18, F18),
    LETHE_KEY(F19, F19),
    LETHE_KEY(F20, F20),
    LETHE_KEY(F21, F21),
    LETHE_KEY(F22, F22),
    LETHE_KEY(F23, F23),
    LETHE_KEY(F24, F24),
    LETHE_KEY(Shift_L, LEFTSHIFT),
    LETHE_KEY(Shift_R, RIGHTSHIFT),
    LETHE_KEY(Control_L, LEFTCTRL),
    LETHE_KEY(Control_R, RIGHTCTRL),
    LETHE_KEY(Caps_Lock, CAPSLOCK),
    LETHE_KEY(Meta_L, LEFTALT),
    LETHE_KEY(Meta_R, RIGHTALT),
    LETHE_KEY(Alt_L, LEFTALT),
    LETHE_KEY(Alt_R, RIGHTALT),
    LETHE_KEY(Super_L, LEFTMETA),
    LETHE_KEY(Super_R, RIGHTMETA),
    LETHE_KEY(Hyper_L, LEFTMETA),
    LETHE_KEY(Hyper_R, RIGHTMETA),
    {kIsoLevel3Shift, KEY_RIGHTALT},
});
#undef LETHE_KEY

}  // namespace

std::optional<KeysymStroke> key_of_keysym(uint32_t keysym) {
  // Latin-1's keysyms are its characters.
  if (keysym >= 0x20 && keysym < 0x7F) {
    const auto stroke = us_key(keysym);
    return stroke ? std::optional(KeysymStroke{*stroke, true}) : std::nullopt;
  }
  const auto* found = std::find_if(kPairs.begin(), kPairs.end(),
                                   [&](const Pair& pair) { return pair.keysym == keysym; });
  if (found == kPairs.end()) return std::nullopt;
  return KeysymStroke{.stroke = {.code = found->code, .shift = false}, .character = false};
}

}  // namespace lethe::gui
