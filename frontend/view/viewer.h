// The viewer: the channel's client, a host window a surface, SDL's events to the guest's. Main
// thread.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "frontend/client.h"
#include "frontend/connect.h"
#include "frontend/view/guest_window.h"
#include "frontend/view/poller.h"

namespace lethe::gui {

struct ViewOptions {
  Target target;
  std::optional<uint32_t> screen;  // only this one, no windows
  bool windows_only = false;
  bool full_screen = false;
  bool grab = false;  // the keyboard, while a window has the focus
  bool exit_with_vm = false;
  bool view_only = false;
  Scale scale = Scale::kFit;
};

class Viewer final : private Listener {
 public:
  // SDL's video must be on.
  explicit Viewer(const ViewOptions& options) : x_options(options) {}
  // Connects, and shows until the user closes it. Errors: the VM can't be reached, or no window can
  // be made. The end of the VM is none.
  [[nodiscard]] Result<> run();

 private:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] Result<> connect();
  void take_from_vm();
  void end(const std::string& why);
  void draw_all();

  void on_surface(const SurfaceState& surface) override;
  void on_surface_gone(uint64_t surface) override;
  void on_frame(uint64_t surface, const FrameView& frame) override;
  void on_cursor(uint64_t surface, const CursorView& cursor) override;

  void on_event(const SDL_Event& event);
  void on_window_event(const SDL_WindowEvent& event);
  void on_key(const SDL_KeyboardEvent& event);
  // Whether it was one of the viewer's own combinations.
  bool on_hot_key(GuestWindow& window, SDL_Scancode key);
  void on_wheel(const SDL_MouseWheelEvent& event);
  void on_button(const SDL_MouseButtonEvent& event);
  void on_close(GuestWindow& window);
  void set_focus(GuestWindow* window);
  void release_keys(GuestWindow& window);
  void set_grab(bool grab);
  void send_due_configures();
  [[nodiscard]] int patience_ms() const;
  void point_at(GuestWindow& window, int x, int y);

  [[nodiscard]] GuestWindow* by_window(uint32_t sdl_window) const;
  [[nodiscard]] GuestWindow* by_surface(uint64_t surface) const;
  // The guest's window, with a title, that a popup belongs to, maybe through other popups; or null.
  [[nodiscard]] GuestWindow* owner_of(const SurfaceState& popup) const;
  void show_popups();

  ViewOptions x_options;
  std::optional<Client> x_client;    // none: the VM has ended
  std::unique_ptr<Poller> x_poller;  // ends before the client's socket
  uint32_t x_event_type = 0;
  std::map<uint64_t, std::unique_ptr<GuestWindow>> x_windows;
  SdlPtr<SDL_Window> x_keeper;  // hidden: SDL sleeps only if there is a window
  GuestWindow* x_focus = nullptr;
  std::map<uint64_t, Clock::time_point> x_configure_due;
  std::string x_notice;
  std::optional<Error> x_failed;        // a screen's window could not be made
  bool x_told_of_failure = false;       // that a guest's window could not be made
  double x_wheel_x = 0, x_wheel_y = 0;  // parts of notches
  bool x_grabbed = false;
  bool x_poller_waits = false;  // for resume()
  short x_polled_events = 0;
  bool x_quit = false;
};

}  // namespace lethe::gui
