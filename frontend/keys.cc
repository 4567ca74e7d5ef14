#include "frontend/keys.h"

#include <linux/input-event-codes.h>

#include <array>

namespace lethe::gui {
namespace {

struct NamedKey {
  std::string_view name;
  uint32_t code;
};
#define LETHE_KEY(name) {#name, KEY_##name}
constexpr auto kNamedKeys = std::to_array<NamedKey>({
    LETHE_KEY(ESC),
    LETHE_KEY(1),
    LETHE_KEY(2),
    LETHE_KEY(3),
    LETHE_KEY(4),
    LETHE_KEY(5),
    LETHE_KEY(6),
    LETHE_KEY(7),
    LETHE_KEY(8),
    LETHE_KEY(9),
    LETHE_KEY(0),
    LETHE_KEY(MINUS),
    LETHE_KEY(EQUAL),
    LETHE_KEY(BACKSPACE),
    LETHE_KEY(TAB),
    LETHE_KEY(Q),
    LETHE_KEY(W),
    LETHE_KEY(E),
    LETHE_KEY(R),
    LETHE_KEY(T),
    LETHE_KEY(Y),
    LETHE_KEY(U),
    LETHE_KEY(I),
    LETHE_KEY(O),
    LETHE_KEY(P),
    LETHE_KEY(LEFTBRACE),
    LETHE_KEY(RIGHTBRACE),
    LETHE_KEY(ENTER),
    LETHE_KEY(LEFTCTRL),
    LETHE_KEY(A),
    LETHE_KEY(S),
    LETHE_KEY(D),
    LETHE_KEY(F),
    LETHE_KEY(G),
    LETHE_KEY(H),
    LETHE_KEY(J),
    LETHE_KEY(K),
    LETHE_KEY(L),
    LETHE_KEY(SEMICOLON),
    LETHE_KEY(APOSTROPHE),
    LETHE_KEY(GRAVE),
    LETHE_KEY(LEFTSHIFT),
    LETHE_KEY(BACKSLASH),
    LETHE_KEY(Z),
    LETHE_KEY(X),
    LETHE_KEY(C),
    LETHE_KEY(V),
    LETHE_KEY(B),
    LETHE_KEY(N),
    LETHE_KEY(M),
    LETHE_KEY(COMMA),
    LETHE_KEY(DOT),
    LETHE_KEY(SLASH),
    LETHE_KEY(RIGHTSHIFT),
    LETHE_KEY(KPASTERISK),
    LETHE_KEY(LEFTALT),
    LETHE_KEY(SPACE),
    LETHE_KEY(CAPSLOCK),
    LETHE_KEY(F1),
    LETHE_KEY(F2),
    LETHE_KEY(F3),
    LETHE_KEY(F4),
    LETHE_KEY(F5),
    LETHE_KEY(F6),
    LETHE_KEY(F7),
    LETHE_KEY(F8),
    LETHE_KEY(F9),
    LETHE_KEY(F10),
    LETHE_KEY(NUMLOCK),
    LETHE_KEY(SCROLLLOCK),
    LETHE_KEY(KP7),
    LETHE_KEY(KP8),
    LETHE_KEY(KP9),
    LETHE_KEY(KPMINUS),
    LETHE_KEY(KP4),
    LETHE_KEY(KP5),
    LETHE_KEY(KP6),
    LETHE_KEY(KPPLUS),
    LETHE_KEY(KP1),
    LETHE_KEY(KP2),
    LETHE_KEY(KP3),
    LETHE_KEY(KP0),
    LETHE_KEY(KPDOT),
    LETHE_KEY(ZENKAKUHANKAKU),
    LETHE_KEY(102ND),
    LETHE_KEY(F11),
    LETHE_KEY(F12),
    LETHE_KEY(RO),
    LETHE_KEY(KATAKANA),
    LETHE_KEY(HIRAGANA),
    LETHE_KEY(HENKAN),
    LETHE_KEY(KATAKANAHIRAGANA),
    LETHE_KEY(MUHENKAN),
    LETHE_KEY(KPJPCOMMA),
    LETHE_KEY(KPENTER),
    LETHE_KEY(RIGHTCTRL),
    LETHE_KEY(KPSLASH),
    LETHE_KEY(SYSRQ),
    LETHE_KEY(RIGHTALT),
    LETHE_KEY(LINEFEED),
    LETHE_KEY(HOME),
    LETHE_KEY(UP),
    LETHE_KEY(PAGEUP),
    LETHE_KEY(LEFT),
    LETHE_KEY(RIGHT),
    LETHE_KEY(END),
    LETHE_KEY(DOWN),
    LETHE_KEY(PAGEDOWN),
    LETHE_KEY(INSERT),
    LETHE_KEY(DELETE),
    LETHE_KEY(MACRO),
    LETHE_KEY(MUTE),
    LETHE_KEY(VOLUMEDOWN),
    LETHE_KEY(VOLUMEUP),
    LETHE_KEY(POWER),
    LETHE_KEY(KPEQUAL),
    LETHE_KEY(KPPLUSMINUS),
    LETHE_KEY(PAUSE),
    LETHE_KEY(SCALE),
    LETHE_KEY(KPCOMMA),
    LETHE_KEY(HANGEUL),
    LETHE_KEY(HANJA),
    LETHE_KEY(YEN),
    LETHE_KEY(LEFTMETA),
    LETHE_KEY(RIGHTMETA),
    LETHE_KEY(COMPOSE),
    LETHE_KEY(STOP),
    LETHE_KEY(AGAIN),
    LETHE_KEY(PROPS),
    LETHE_KEY(UNDO),
    LETHE_KEY(FRONT),
    LETHE_KEY(COPY),
    LETHE_KEY(OPEN),
    LETHE_KEY(PASTE),
    LETHE_KEY(FIND),
    LETHE_KEY(CUT),
    LETHE_KEY(HELP),
    LETHE_KEY(MENU),
    LETHE_KEY(CALC),
    LETHE_KEY(SETUP),
    LETHE_KEY(SLEEP),
    LETHE_KEY(WAKEUP),
    LETHE_KEY(FILE),
    LETHE_KEY(SENDFILE),
    LETHE_KEY(DELETEFILE),
    LETHE_KEY(XFER),
    LETHE_KEY(PROG1),
    LETHE_KEY(PROG2),
    LETHE_KEY(WWW),
    LETHE_KEY(MSDOS),
    LETHE_KEY(COFFEE),
    LETHE_KEY(ROTATE_DISPLAY),
    LETHE_KEY(CYCLEWINDOWS),
    LETHE_KEY(MAIL),
    LETHE_KEY(BOOKMARKS),
    LETHE_KEY(COMPUTER),
    LETHE_KEY(BACK),
    LETHE_KEY(FORWARD),
    LETHE_KEY(CLOSECD),
    LETHE_KEY(EJECTCD),
    LETHE_KEY(EJECTCLOSECD),
    LETHE_KEY(NEXTSONG),
    LETHE_KEY(PLAYPAUSE),
    LETHE_KEY(PREVIOUSSONG),
    LETHE_KEY(STOPCD),
    LETHE_KEY(RECORD),
    LETHE_KEY(REWIND),
    LETHE_KEY(PHONE),
    LETHE_KEY(ISO),
    LETHE_KEY(CONFIG),
    LETHE_KEY(HOMEPAGE),
    LETHE_KEY(REFRESH),
    LETHE_KEY(EXIT),
    LETHE_KEY(MOVE),
    LETHE_KEY(EDIT),
    LETHE_KEY(SCROLLUP),
    LETHE_KEY(SCROLLDOWN),
    LETHE_KEY(KPLEFTPAREN),
    LETHE_KEY(KPRIGHTPAREN),
    LETHE_KEY(NEW),
    LETHE_KEY(REDO),
    LETHE_KEY(F13),
    LETHE_KEY(F14),
    LETHE_KEY(F15),
    LETHE_KEY(F16),
    LETHE_KEY(F17),
    LETHE_KEY(F18),
    LETHE_KEY(F19),
    LETHE_KEY(F20),
    LETHE_KEY(F21),
    LETHE_KEY(F22),
    LETHE_KEY(F23),
    LETHE_KEY(F24),
    LETHE_KEY(PRINT),
});
#undef LETHE_KEY

// Rows of a US keyboard, each from the code of its first key: plain, then with Shift.
struct Row {
  uint32_t first;
  std::string_view plain;
  std::string_view shifted;
};
constexpr std::array kRows = {
    Row{KEY_1, "1234567890-=\b\t", "!@#$%^&*()_+"},
    Row{KEY_Q, "qwertyuiop[]\n", "QWERTYUIOP{}"},
    Row{KEY_A, "asdfghjkl;'`", "ASDFGHJKL:\"~"},
    Row{KEY_BACKSLASH, "\\zxcvbnm,./", "|ZXCVBNM<>?"},
    Row{KEY_SPACE, " ", ""},
    Row{KEY_ESC, "\x1b", ""},
};

}  // namespace

std::optional<KeyStroke> us_key(char32_t character) {
  if (character == 0 || character > 0x7E) return std::nullopt;
  const char wanted = static_cast<char>(character);
  for (const Row& row : kRows) {
    if (const size_t at = row.plain.find(wanted); at != std::string_view::npos)
      return KeyStroke{row.first + static_cast<uint32_t>(at), false};
    if (const size_t at = row.shifted.find(wanted); at != std::string_view::npos)
      return KeyStroke{row.first + static_cast<uint32_t>(at), true};
  }
  return std::nullopt;
}

std::optional<uint32_t> key_by_name(std::string_view name) {
  if (name.starts_with("KEY_")) name.remove_prefix(4);
  for (const NamedKey& key : kNamedKeys)
    if (key.name == name) return key.code;
  return std::nullopt;
}

}  // namespace lethe::gui
