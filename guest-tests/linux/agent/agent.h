// lethe-agent: shows each top-level window of an X server as a window of the host.
//
//   X server --MapNotify, XDamage--> Agent --window commands--> Host (virtio-gpu)
//   X server <--XTest, configure--- Agent <-------events------ Host
//
// A window is drawn into a buffer (WindowImage) that the host shows. It is not drawn again before
// the host says that the frame has been read (kEventDone); what changes meanwhile is one damage.
// Without a window manager the agent is a minimal one: it maps, places and focuses.
//
// Threading: one thread.
#pragma once

#include <xcb/damage.h>
#include <xcb/xcb.h>
#include <xcb/xfixes.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "guest-tests/linux/agent/host.h"
#include "guest-tests/linux/agent/window_image.h"
#include "guest-tests/linux/agent/x_connection.h"

namespace lethe::agent {

struct AgentCounters {
  uint64_t frames = 0;
  uint64_t direct_frames = 0;  // of these: drawn by the X server into the host's memory
  uint64_t released = 0;       // buffers that the host has let go of
  uint64_t input_refused = 0;  // events that this X server cannot have
};

class Agent {
 public:
  // A frame that is not read for so long is drawn over: the host has lost the event.
  static constexpr std::chrono::milliseconds kReadPatience{500};

  // Both must outlive it. Takes over the windows that there are.
  Agent(XConnection& x, Host& host);
  ~Agent();  // the host's windows go
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  // Waits up to `timeout_ms` (-1: as long as it takes) and does what there is to do. Fails when the
  // host is gone; the X server's end is XConnection::broken().
  [[nodiscard]] Result<> step(int timeout_ms);
  [[nodiscard]] const AgentCounters& counters() const { return x_counters; }

 private:
  using Clock = std::chrono::steady_clock;

  struct Geometry {
    int32_t x = 0;  // of the content, without the border
    int32_t y = 0;
    uint32_t width = 0;
    uint32_t height = 0;
    bool operator==(const Geometry&) const = default;
  };
  struct Window {
    xcb_window_t id = 0;      // the root's child
    xcb_window_t client = 0;  // the one with the properties: `id`, or within a frame
    bool mapped = false;
    bool override_redirect = false;
    bool has_pixels = true;  // it is no InputOnly
    uint8_t depth = 0;
    uint32_t border = 0;
    Geometry geometry;
    // While it is shown:
    uint32_t number = 0;  // the host's name for it; 0: not shown
    window::WindowCreate sent{};
    std::string title;
    xcb_window_t parent = 0;  // it is above this one; 0: none
    bool dialog = false;
    bool resizable = true;
    xcb_damage_damage_t damage = 0;
    xcb_xfixes_region_t region = 0;
    std::unique_ptr<WindowImage> image;
    bool dirty = false;  // it has damage that the image lacks
    bool whole = false;  // all of it
    bool reading = false;
    uint32_t serial = 0;  // of its last frame
    Clock::time_point drawn_at;
  };

  // agent.cc
  void adopt(xcb_window_t id);
  void forget(xcb_window_t id);
  void handle(const xcb_generic_event_t& event);
  void handle_request(const xcb_generic_event_t& event);
  void handle_configure(const xcb_configure_notify_event_t& event);
  void show_or_hide(Window& window);
  void show(Window& window);
  void hide(Window& window);
  void read_properties(Window& window);
  void update(Window& window);
  [[nodiscard]] xcb_window_t find_client(xcb_window_t id) const;
  [[nodiscard]] window::WindowCreate state_of(const Window& window) const;
  [[nodiscard]] Window* by_id(xcb_window_t id);
  [[nodiscard]] Window* by_client(xcb_window_t id);
  [[nodiscard]] Window* by_number(uint32_t number);
  // agent_paint.cc
  void paint();
  bool prepare(Window& window);
  void present(Window& window, const xcb_rectangle_t& damage, bool attach);
  [[nodiscard]] bool wants_paint(const Window& window, Clock::time_point now) const;
  [[nodiscard]] int paint_timeout(int timeout_ms) const;
  // agent_input.cc
  void host_event(const window::Event& event);
  void release_held_keys();
  void key(Window& window, uint32_t code, bool down);
  void button(Window& window, uint32_t code, bool down);
  void wheel(Window& window, int32_t vertical, int32_t horizontal);
  void motion(Window& window, int32_t x, int32_t y);
  void focus(Window& window, bool focused);
  void configure(Window& window, const Geometry& wanted);
  void close(Window& window);
  void raise(Window& window);
  void fake_input(uint8_t type, uint32_t detail, int32_t x = 0, int32_t y = 0);

  XConnection& x_x;
  Host& x_host;
  Commands x_commands;
  Scratch x_scratch;
  std::map<xcb_window_t, Window> x_windows;
  std::vector<std::unique_ptr<WindowImage>> x_retired;  // until the host shows the new ones
  uint32_t x_next_number = 1;
  uint32_t x_next_serial = 1;
  uint32_t x_focused = 0;  // numbers
  uint32_t x_top = 0;
  AgentCounters x_counters;
};

}  // namespace lethe::agent
