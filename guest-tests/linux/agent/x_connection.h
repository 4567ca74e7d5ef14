// A connection to the X server of the guest: the extensions that lethe-agent uses, the atoms, and
// what windows say of themselves. Source of the properties: ICCCM 2.0 section 4, EWMH 1.5.
//
// Threading: one thread.
#pragma once

#include <xcb/damage.h>
#include <xcb/shm.h>
#include <xcb/xcb.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace lethe::agent {

struct FreeDeleter {
  void operator()(void* pointer) const { std::free(pointer); }
};
template <typename T>
using XReply = std::unique_ptr<T, FreeDeleter>;

enum class Atom : uint8_t {
  kWmProtocols,
  kWmDeleteWindow,
  kWmTakeFocus,
  kWmState,
  kNetWmName,
  kUtf8String,
  kCount,
};

class XConnection {
 public:
  // `name`: as in $DISPLAY; empty for that. `manage`: act as a minimal window manager if none runs.
  // Fails when there is no server, or it lacks an extension.
  [[nodiscard]] static Result<std::unique_ptr<XConnection>> open(const std::string& name,
                                                                 bool manage);
  ~XConnection() { xcb_disconnect(x_connection); }
  XConnection(const XConnection&) = delete;
  XConnection& operator=(const XConnection&) = delete;

  [[nodiscard]] xcb_connection_t* xcb() const { return x_connection; }
  [[nodiscard]] bool broken() const { return xcb_connection_has_error(x_connection) != 0; }
  [[nodiscard]] int fd() const { return xcb_get_file_descriptor(x_connection); }
  [[nodiscard]] xcb_window_t root() const { return x_screen->root; }
  [[nodiscard]] const xcb_screen_t& screen() const { return *x_screen; }
  [[nodiscard]] bool manages() const { return x_manages; }
  [[nodiscard]] bool shared_pixmaps() const { return x_shared_pixmaps; }
  [[nodiscard]] uint8_t damage_notify() const { return x_damage_notify; }
  [[nodiscard]] xcb_atom_t atom(Atom which) const { return x_atoms[static_cast<size_t>(which)]; }
  // Waits until the server has done all that was asked.
  void sync() const;

  // The children of a window, bottom to top.
  [[nodiscard]] std::vector<xcb_window_t> children(xcb_window_t window) const;
  // UTF-8, at most window::kTitleBytes - 1 bytes, cut at a character.
  [[nodiscard]] std::string title(xcb_window_t window) const;
  // WM_TRANSIENT_FOR. None: nothing; a dialog of no window in particular: 0 or the root.
  [[nodiscard]] std::optional<xcb_window_t> transient_for(xcb_window_t window) const;
  [[nodiscard]] bool resizable(xcb_window_t window) const;  // WM_NORMAL_HINTS
  [[nodiscard]] bool has_property(xcb_window_t window, xcb_atom_t property) const;
  [[nodiscard]] bool speaks(xcb_window_t window, Atom protocol) const;  // WM_PROTOCOLS
  void send_protocol(xcb_window_t window, Atom protocol) const;
  void set_wm_state(xcb_window_t window, bool shown) const;

 private:
  explicit XConnection(xcb_connection_t* connection) : x_connection(connection) {}
  [[nodiscard]] Result<> init(int screen, bool manage);
  [[nodiscard]] Result<> init_extensions();
  [[nodiscard]] XReply<xcb_get_property_reply_t> property(xcb_window_t window, xcb_atom_t property,
                                                          xcb_atom_t type, uint32_t words) const;

  xcb_connection_t* x_connection;
  const xcb_screen_t* x_screen = nullptr;
  std::array<xcb_atom_t, static_cast<size_t>(Atom::kCount)> x_atoms{};
  bool x_manages = false;
  bool x_shared_pixmaps = false;
  uint8_t x_damage_notify = 0;
};

// The longest start of `text` that has at most `bytes_max` bytes and ends at a character; bytes
// that are no UTF-8 become question marks.
[[nodiscard]] std::string utf8_cut(std::string_view text, size_t bytes_max);

}  // namespace lethe::agent
