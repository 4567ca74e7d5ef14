#include "guest-tests/linux/agent/agent.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace lethe::agent {
namespace {

// SAFETY: xcb hands out events as the generic one; its type byte says which struct it is.
template <typename T>
const T& as(const xcb_generic_event_t& event) {
  return reinterpret_cast<const T&>(event);
}

constexpr uint8_t kSentEvent = 0x80;  // of response_type: a client made it up (SendEvent)

}  // namespace

Agent::Agent(XConnection& x, Host& host) : x_x(x), x_host(host), x_commands(host), x_scratch(x) {
  release_held_keys();
  for (const xcb_window_t id : x_x.children(x_x.root())) adopt(id);
}

Agent::~Agent() {
  for (auto& [id, window] : x_windows) hide(window);
  // The host may be gone; then its windows are.
  static_cast<void>(x_commands.flush());
}

Result<> Agent::step(int timeout_ms) {
  // Events that came with the replies of the last round are read already: poll() would not tell.
  XReply<xcb_generic_event_t> event(xcb_poll_for_queued_event(x_x.xcb()));
  std::array<pollfd, 2> fds{{{.fd = x_x.fd(), .events = POLLIN, .revents = 0},
                             {.fd = x_host.event_fd(), .events = POLLIN, .revents = 0}}};
  if (poll(fds.data(), fds.size(), event ? 0 : paint_timeout(timeout_ms)) < 0 && errno != EINTR)
    return host_error("poll: {}", errno_text(errno));
  if (!event) event.reset(xcb_poll_for_event(x_x.xcb()));
  for (; event; event.reset(xcb_poll_for_event(x_x.xcb()))) handle(*event);
  if (x_x.broken()) return {};
  if (fds[1].revents != 0)
    LETHE_TRY(x_host.take_events([this](const window::Event& what) { host_event(what); }));
  paint();
  LETHE_TRY(x_commands.flush());
  x_retired.clear();
  xcb_flush(x_x.xcb());
  return {};
}

Agent::Window* Agent::by_id(xcb_window_t id) {
  auto found = x_windows.find(id);
  return found == x_windows.end() ? nullptr : &found->second;
}

Agent::Window* Agent::by_client(xcb_window_t id) {
  for (auto& [other, window] : x_windows)
    if (window.client == id || other == id) return &window;
  return nullptr;
}

Agent::Window* Agent::by_number(uint32_t number) {
  for (auto& [id, window] : x_windows)
    if (number != 0 && window.number == number) return &window;
  return nullptr;
}

void Agent::adopt(xcb_window_t id) {
  if (x_windows.contains(id)) return;
  const auto attributes_cookie = xcb_get_window_attributes(x_x.xcb(), id);
  const auto geometry_cookie = xcb_get_geometry(x_x.xcb(), id);
  XReply<xcb_get_window_attributes_reply_t> attributes(
      xcb_get_window_attributes_reply(x_x.xcb(), attributes_cookie, nullptr));
  XReply<xcb_get_geometry_reply_t> geometry(
      xcb_get_geometry_reply(x_x.xcb(), geometry_cookie, nullptr));
  if (!attributes || !geometry) return;  // it is gone already
  Window& window = x_windows[id];
  window.id = window.client = id;
  window.mapped = attributes->map_state != XCB_MAP_STATE_UNMAPPED;
  window.override_redirect = attributes->override_redirect != 0;
  window.has_pixels = attributes->_class == XCB_WINDOW_CLASS_INPUT_OUTPUT;
  window.depth = geometry->depth;
  window.border = geometry->border_width;
  window.geometry = {geometry->x + geometry->border_width, geometry->y + geometry->border_width,
                     geometry->width, geometry->height};
  show_or_hide(window);
}

void Agent::forget(xcb_window_t id) {
  Window* window = by_id(id);
  if (window == nullptr) return;
  hide(*window);
  x_windows.erase(id);
}

void Agent::handle(const xcb_generic_event_t& event) {
  const uint8_t type = event.response_type & ~kSentEvent;
  if (type == x_x.damage_notify()) {
    if (Window* window = by_id(as<xcb_damage_notify_event_t>(event).drawable))
      window->dirty = window->number != 0;
    return;
  }
  switch (type) {
    case XCB_CREATE_NOTIFY:
      if (as<xcb_create_notify_event_t>(event).parent == x_x.root())
        adopt(as<xcb_create_notify_event_t>(event).window);
      break;
    case XCB_DESTROY_NOTIFY:
      forget(as<xcb_destroy_notify_event_t>(event).window);
      break;
    case XCB_REPARENT_NOTIFY:
      if (as<xcb_reparent_notify_event_t>(event).parent == x_x.root())
        adopt(as<xcb_reparent_notify_event_t>(event).window);
      else
        forget(as<xcb_reparent_notify_event_t>(event).window);
      break;
    case XCB_MAP_NOTIFY:
      if (Window* window = by_id(as<xcb_map_notify_event_t>(event).window)) {
        window->mapped = true;
        window->override_redirect = as<xcb_map_notify_event_t>(event).override_redirect != 0;
        show_or_hide(*window);
      }
      break;
    case XCB_UNMAP_NOTIFY:
      if (Window* window = by_id(as<xcb_unmap_notify_event_t>(event).window)) {
        window->mapped = false;
        show_or_hide(*window);
        if (x_x.manages() && !window->override_redirect) x_x.set_wm_state(window->id, false);
      }
      break;
    case XCB_CONFIGURE_NOTIFY:
      handle_configure(as<xcb_configure_notify_event_t>(event));
      break;
    case XCB_PROPERTY_NOTIFY:
      if (Window* window = by_client(as<xcb_property_notify_event_t>(event).window);
          window != nullptr && window->number != 0)
        read_properties(*window);
      break;
    default:
      handle_request(event);
      break;
  }
}

// What only a window manager gets: everybody's wish is granted.
void Agent::handle_request(const xcb_generic_event_t& event) {
  const uint8_t type = event.response_type & ~kSentEvent;
  if (type == XCB_MAP_REQUEST) {
    const xcb_window_t window = as<xcb_map_request_event_t>(event).window;
    x_x.set_wm_state(window, true);
    xcb_map_window(x_x.xcb(), window);
  } else if (type == XCB_CONFIGURE_REQUEST) {
    const auto& request = as<xcb_configure_request_event_t>(event);
    // In the order of the mask's bits. The border belongs to the host's decoration.
    const std::array<uint32_t, 7> all = {static_cast<uint32_t>(request.x),
                                         static_cast<uint32_t>(request.y),
                                         request.width,
                                         request.height,
                                         0,
                                         request.sibling,
                                         request.stack_mode};
    std::array<uint32_t, 7> values{};
    size_t count = 0;
    for (size_t i = 0; i < all.size(); ++i)
      if ((request.value_mask >> i & 1) != 0) values[count++] = all[i];
    xcb_configure_window(x_x.xcb(), request.window, request.value_mask, values.data());
  }
}

void Agent::handle_configure(const xcb_configure_notify_event_t& event) {
  Window* window = by_id(event.window);
  if (window == nullptr) return;
  window->border = event.border_width;
  window->override_redirect = event.override_redirect != 0;
  window->geometry = {event.x + event.border_width, event.y + event.border_width, event.width,
                      event.height};
  show_or_hide(*window);
  if (window->number != 0) update(*window);
}

// Toolkits keep helpers mapped outside the screen: nobody should see those.
void Agent::show_or_hide(Window& window) {
  const Geometry& at = window.geometry;
  const xcb_screen_t& screen = x_x.screen();
  const bool outside = at.x + static_cast<int32_t>(at.width) <= 0 ||
                       at.y + static_cast<int32_t>(at.height) <= 0 ||
                       at.x >= screen.width_in_pixels || at.y >= screen.height_in_pixels;
  const bool wanted = window.mapped && window.has_pixels && !(window.override_redirect && outside);
  if (wanted && window.number == 0) show(window);
  if (!wanted && window.number != 0) hide(window);
}

// A reparenting window manager puts the program's window into a frame of its own: it is the one
// with WM_STATE.
xcb_window_t Agent::find_client(xcb_window_t id) const {
  constexpr int kDepthMax = 3;
  const xcb_atom_t wm_state = x_x.atom(Atom::kWmState);
  if (x_x.manages() || x_x.has_property(id, wm_state)) return id;
  std::vector<xcb_window_t> level = {id};
  for (int depth = 0; depth < kDepthMax; ++depth) {
    std::vector<xcb_window_t> next;
    for (const xcb_window_t window : level)
      for (const xcb_window_t child : x_x.children(window)) {
        if (x_x.has_property(child, wm_state)) return child;
        next.push_back(child);
      }
    level = std::move(next);
  }
  return id;
}

void Agent::show(Window& window) {
  const auto shown = std::count_if(x_windows.begin(), x_windows.end(),
                                   [](const auto& entry) { return entry.second.number != 0; });
  if (shown >= static_cast<std::ptrdiff_t>(window::kWindowsMax)) return;
  window.number = x_next_number++;
  window.client = window.override_redirect ? window.id : find_client(window.id);
  const uint32_t mask = XCB_EVENT_MASK_PROPERTY_CHANGE;
  xcb_change_window_attributes(x_x.xcb(), window.client, XCB_CW_EVENT_MASK, &mask);
  window.damage = xcb_generate_id(x_x.xcb());
  xcb_damage_create(x_x.xcb(), window.damage, window.id, XCB_DAMAGE_REPORT_LEVEL_NON_EMPTY);
  window.region = xcb_generate_id(x_x.xcb());
  xcb_xfixes_create_region(x_x.xcb(), window.region, 0, nullptr);
  window.title.clear();
  window.sent = {};
  read_properties(window);
  window.dirty = window.whole = true;
  window.reading = false;
  x_top = 0;
}

void Agent::hide(Window& window) {
  if (window.number == 0) return;
  window::WindowDestroy destroy{};
  destroy.window = window.number;
  x_commands.add(window::kWindowDestroy, destroy);
  // The window may be gone, and its damage with it: the error is not looked at.
  xcb_damage_destroy(x_x.xcb(), window.damage);
  xcb_xfixes_destroy_region(x_x.xcb(), window.region);
  if (x_focused == window.number) x_focused = 0;
  if (x_top == window.number) x_top = 0;
  window.number = 0;
  window.dirty = window.whole = false;
  if (window.image) x_retired.push_back(std::move(window.image));
}

void Agent::read_properties(Window& window) {
  const auto above = x_x.transient_for(window.client);
  window.dialog = above.has_value() && !window.override_redirect;
  window.parent = above.value_or(0);
  if (window.parent == 0 && window.override_redirect)
    if (const Window* focused = by_number(x_focused)) window.parent = focused->id;
  window.resizable = !window.override_redirect && x_x.resizable(window.client);
  update(window);
  std::string title = x_x.title(window.client);
  if (title == window.title) return;
  window::WindowTitle command{};
  command.window = window.number;
  std::memcpy(command.title, title.data(), std::min(title.size(), sizeof(command.title) - 1));
  x_commands.add(window::kWindowTitle, command);
  window.title = std::move(title);
}

window::WindowCreate Agent::state_of(const Window& window) const {
  window::WindowCreate state{};
  state.window = window.number;
  for (const auto& [id, other] : x_windows)
    if (window.parent != 0 && (other.client == window.parent || id == window.parent) &&
        other.number != window.number)
      state.parent = other.number;
  state.flags = window::kWindowVisible;
  if (window.override_redirect) state.flags |= window::kWindowPopup;
  if (window.dialog) state.flags |= window::kWindowDialog;
  if (window.resizable) state.flags |= window::kWindowResizable;
  state.x = window.geometry.x;
  state.y = window.geometry.y;
  state.width = std::min(window.geometry.width, window::kSidePixelsMax);
  state.height = std::min(window.geometry.height, window::kSidePixelsMax);
  return state;
}

// Creates the host's window, or tells it what has changed.
void Agent::update(Window& window) {
  const window::WindowCreate state = state_of(window);
  if (window.sent.window == 0)
    x_commands.add(window::kWindowCreate, state);
  else if (std::memcmp(&state.window, &window.sent.window, sizeof(state) - sizeof(state.header)) !=
           0)
    x_commands.add(window::kWindowGeometry, state);
  if (state.width != window.sent.width || state.height != window.sent.height)
    window.dirty = window.whole = true;
  window.sent = state;
}

}  // namespace lethe::agent
