// lethe-vnc itself: the GUI channel on one side, VNC clients on the other. One thread, which sleeps
// in poll(2).
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "frontend/client.h"
#include "frontend/connect.h"
#include "frontend/vnc/desktop.h"
#include "frontend/vnc/vnc_screen.h"
#include "frontend/vnc/web_gate.h"

namespace lethe::gui {

struct VncOptions {
  Target target;
  std::string unix_path;             // empty: none
  std::optional<uint16_t> port;      // VNC on 127.0.0.1; 0: a free one
  std::optional<uint16_t> web_port;  // the same for browsers
  std::string password;              // must not be empty with a port
  std::string web;                   // noVNC's folder
  Desktop::Show show = Desktop::Show::kAuto;
  uint32_t output = 0;
  bool view_only = false;
};

class VncServer final : private Listener, private VncUser {
 public:
  explicit VncServer(const VncOptions& options)
      : x_options(options), x_desktop(options.show, options.output) {}
  ~VncServer();

  // Connects, listens, and says where on stdout; serves until SIGINT, SIGTERM or the VM's end.
  [[nodiscard]] Result<> run();

 private:
  [[nodiscard]] Result<> start();
  [[nodiscard]] Result<> listen();
  [[nodiscard]] bool serve_once();  // false: a signal came
  void accept_all(int listener);
  void show_damage();
  [[nodiscard]] int patience_ms(bool held_back) const;

  void on_surface(const SurfaceState& surface) override;
  void on_surface_gone(uint64_t surface) override;
  void on_frame(uint64_t surface, const FrameView& frame) override;
  void on_cursor(uint64_t surface, const CursorView& cursor) override;

  void keysym(uint32_t keysym, bool down) override;
  void pointer(int32_t x, int32_t y, uint8_t buttons) override;
  void desktop_size(uint32_t width, uint32_t height) override;
  void user_gone() override { release_all(); }
  void no_client() override { set_focus(0); }

  void send_key(uint32_t code, bool down);
  void release_keys();
  void release_all();  // buttons, too
  void set_focus(uint64_t surface);
  [[nodiscard]] bool down(uint32_t code) const { return x_keys_down.contains(code); }

  VncOptions x_options;
  Desktop x_desktop;
  std::optional<Client> x_client;
  std::unique_ptr<VncScreen> x_screen;
  std::optional<WebGate> x_gate;
  UniqueFd x_unix;
  UniqueFd x_tcp;
  UniqueFd x_web;
  UniqueFd x_signals;
  std::string x_unlink;  // the Unix socket's path, once it is ours
  Result<> x_ended;      // an error once the channel has ended
  std::set<uint32_t> x_keys_down;
  std::map<uint32_t, uint32_t> x_codes_by_keysym;  // what a keysym has pressed
  uint64_t x_focus = 0;                            // keys go there
  uint64_t x_drag = 0;                             // a button went down there, and is down still
  uint8_t x_buttons = 0;
  int32_t x_last_x = -1, x_last_y = -1;
};

}  // namespace lethe::gui
