#include "frontend/view/viewer.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cstdio>
#include <vector>

namespace lethe::gui {
namespace {

// A window that is being dragged to another size tells the guest once it rests.
constexpr std::chrono::milliseconds kConfigureDelay{80};

}  // namespace

Result<> Viewer::connect() {
  LETHE_TRY_ASSIGN(UniqueFd socket, connect_socket(x_options.target));
  LETHE_TRY_ASSIGN(
      Client client,
      Client::connect(std::move(socket), {.name = "lethe-view", .view_only = x_options.view_only}));
  LETHE_TRY_ASSIGN(EventFd resume, EventFd::create());
  LETHE_TRY_ASSIGN(EventFd stop, EventFd::create());
  x_client.emplace(std::move(client));
  x_notice.clear();
  x_poller_waits = false;
  x_polled_events = POLLIN;
  x_poller =
      std::make_unique<Poller>(x_client->fd(), x_event_type, std::move(resume), std::move(stop));
  return {};
}

Result<> Viewer::run() {
  x_event_type = SDL_RegisterEvents(1);
  x_grabbed = x_options.grab;
  x_keeper.reset(SDL_CreateWindow("lethe-view", 0, 0, 1, 1, SDL_WINDOW_HIDDEN));
  LETHE_TRY(connect());
  while (!x_quit) {
    SDL_Event event;
    bool there = SDL_WaitEventTimeout(&event, patience_ms()) != 0;
    for (; there && !x_quit; there = SDL_PollEvent(&event) != 0) on_event(event);
    send_due_configures();
    // Input goes out at once; what the VM sent meanwhile is taken by the way.
    if (x_client) take_from_vm();
    if (x_failed) return Unexpected(*x_failed);
    draw_all();
  }
  x_poller.reset();
  return {};
}

int Viewer::patience_ms() const {
  if (x_configure_due.empty()) return -1;
  auto first = Clock::time_point::max();
  for (const auto& [surface, due] : x_configure_due) first = std::min(first, due);
  return static_cast<int>(std::clamp<int64_t>(
      std::chrono::ceil<std::chrono::milliseconds>(first - Clock::now()).count(), 0, 1000));
}

void Viewer::take_from_vm() {
  if (const auto result = x_client->process(*this); !result) {
    end(result.error().text);
  } else if (std::exchange(x_poller_waits, false) || x_client->events() != x_polled_events) {
    x_polled_events = x_client->events();
    x_poller->resume(x_polled_events);
  }
}

void Viewer::end(const std::string& why) {
  const std::string name = x_client->vm_name().empty() ? "the VM" : x_client->vm_name();
  fmt::print(stderr, "lethe-view: {}: {}\n", name, why);
  x_poller.reset();
  x_client.reset();
  set_grab(false);
  const bool ended = why.starts_with("the VM has ended");
  x_notice = ended ? "The VM has ended (R: reconnect)" : "Connection lost (R: reconnect)";
  for (const auto& [surface, window] : x_windows) {
    window->keys_down.clear();
    window->set_title(ended ? " - ended" : " - connection lost");
    window->mark_dirty();
  }
  // A window that never had a picture has nothing to say it in.
  if (x_options.exit_with_vm || x_windows.empty()) x_quit = true;
}

void Viewer::draw_all() {
  for (const auto& [surface, window] : x_windows) window->draw(x_notice, x_options.scale);
}

GuestWindow* Viewer::by_window(uint32_t sdl_window) const {
  for (const auto& [surface, window] : x_windows)
    if (SDL_GetWindowID(window->window()) == sdl_window) return window.get();
  return nullptr;
}

GuestWindow* Viewer::by_surface(uint64_t surface) const {
  const auto found = x_windows.find(surface);
  return found == x_windows.end() ? nullptr : found->second.get();
}

GuestWindow* Viewer::owner_of(const SurfaceState& popup) const {
  GuestWindow* window = by_surface(popup.parent);
  // A guest may say that popups belong to each other, in a circle.
  for (size_t i = 0; i < x_windows.size() && window != nullptr && window->is_popup(); ++i)
    window = by_surface(window->state().parent);
  return window != nullptr && !window->is_popup() && !window->is_screen() ? window : nullptr;
}

void Viewer::show_popups() {
  for (const auto& [surface, window] : x_windows) {
    if (!window->is_popup()) continue;
    const GuestWindow* owner = owner_of(window->state());
    window->set_owner_shown(owner != nullptr && owner->shown());
  }
}

// --- What the VM says ---

void Viewer::on_surface(const SurfaceState& said) {
  SurfaceState surface = said;
  // What has no border has no VM's name: it must stand with a window that has one.
  if ((surface.flags & kSurfacePopup) != 0 && owner_of(surface) == nullptr)
    surface.flags &= ~kSurfacePopup;
  const bool screen = surface.kind == SurfaceKind::kScreen;
  if (screen ? x_options.windows_only || (x_options.screen && *x_options.screen != surface.output)
             : x_options.screen.has_value())
    return;
  GuestWindow* parent = surface.parent == 0 ? nullptr : by_surface(surface.parent);
  if (GuestWindow* window = by_surface(surface.id)) {
    // A user who is still dragging it is not fought over its size.
    window->update(said, parent, !x_configure_due.contains(surface.id));
    return show_popups();
  }
  auto window = GuestWindow::create(surface, x_client->vm_name(), parent);
  if (!window) {
    // The guest may have asked for more than there is: that must not end what else is shown.
    if (screen)
      x_failed = window.error();
    else if (!std::exchange(x_told_of_failure, true))
      fmt::print(stderr, "lethe-view: a window of the guest is not shown: {}\n",
                 window.error().text);
    return;
  }
  if (screen && x_options.full_screen) (*window)->toggle_full_screen();
  x_windows[surface.id] = std::move(*window);
  show_popups();
}

void Viewer::on_surface_gone(uint64_t surface) {
  GuestWindow* window = by_surface(surface);
  if (window == nullptr) return;
  if (x_focus == window) x_focus = nullptr;
  x_configure_due.erase(surface);
  x_windows.erase(surface);
  show_popups();
}

void Viewer::on_frame(uint64_t surface, const FrameView& frame) {
  GuestWindow* window = by_surface(surface);
  if (window == nullptr) return;
  const bool before = window->shown();
  window->show(frame);
  if (window->shown() != before) show_popups();
}

void Viewer::on_cursor(uint64_t surface, const CursorView& cursor) {
  GuestWindow* window = by_surface(surface);
  if (window == nullptr) return;
  window->set_cursor(cursor);
  if (SDL_GetMouseFocus() == window->window()) window->use_cursor();
}

// --- What the user does ---

void Viewer::on_event(const SDL_Event& event) {
  switch (event.type) {
    case SDL_QUIT:
      x_quit = true;
      return;
    case SDL_WINDOWEVENT:
      return on_window_event(event.window);
    case SDL_KEYDOWN:
    case SDL_KEYUP:
      return on_key(event.key);
    case SDL_MOUSEMOTION:
      if (GuestWindow* window = by_window(event.motion.windowID))
        point_at(*window, event.motion.x, event.motion.y);
      return;
    case SDL_MOUSEBUTTONDOWN:
    case SDL_MOUSEBUTTONUP:
      return on_button(event.button);
    case SDL_MOUSEWHEEL:
      return on_wheel(event.wheel);
    default:
      // take_from_vm() follows
      if (event.type == x_event_type) x_poller_waits = true;
  }
}

void Viewer::on_window_event(const SDL_WindowEvent& event) {
  GuestWindow* window = by_window(event.windowID);
  if (window == nullptr) return;
  switch (event.event) {
    case SDL_WINDOWEVENT_CLOSE:
      return on_close(*window);
    case SDL_WINDOWEVENT_FOCUS_GAINED:
      return set_focus(window);
    case SDL_WINDOWEVENT_FOCUS_LOST:
      if (x_focus == window) set_focus(nullptr);
      return;
    case SDL_WINDOWEVENT_ENTER:
      return window->use_cursor();
    case SDL_WINDOWEVENT_RESIZED:
    case SDL_WINDOWEVENT_MOVED:
      if (window->differs_from_guest())
        x_configure_due[window->surface()] = Clock::now() + kConfigureDelay;
      window->mark_dirty();
      return;
    default:
      window->mark_dirty();  // exposed, shown, restored, ...
  }
}

void Viewer::on_close(GuestWindow& window) {
  // A screen is closed to stop looking; a guest's window is the guest's to close.
  if (window.is_screen() || !x_client)
    x_quit = true;
  else
    x_client->send_close(window.surface());
}

void Viewer::send_due_configures() {
  const auto now = Clock::now();
  for (auto at = x_configure_due.begin(); at != x_configure_due.end();) {
    GuestWindow* window = by_surface(at->first);
    if (at->second > now) {
      ++at;
      continue;
    }
    if (window != nullptr && x_client && window->differs_from_guest()) {
      int x = 0, y = 0, width = 0, height = 0;
      SDL_GetWindowPosition(window->window(), &x, &y);
      SDL_GetWindowSize(window->window(), &width, &height);
      x_client->send_configure(at->first, window->is_screen() ? 0 : x, window->is_screen() ? 0 : y,
                               static_cast<uint32_t>(width), static_cast<uint32_t>(height));
    }
    at = x_configure_due.erase(at);
  }
}

}  // namespace lethe::gui
