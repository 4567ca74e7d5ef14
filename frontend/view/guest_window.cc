#include "frontend/view/guest_window.h"

#include <fmt/format.h>

#include <algorithm>

#include "frontend/picture.h"
#include "frontend/view/notice.h"

namespace lethe::gui {
namespace {

uint32_t window_flags(const SurfaceState& state) {
  // Popups get neither decoration nor focus, and are where the guest has them.
  if ((state.flags & kSurfacePopup) != 0)
    return SDL_WINDOW_HIDDEN | SDL_WINDOW_BORDERLESS | SDL_WINDOW_POPUP_MENU |
           SDL_WINDOW_SKIP_TASKBAR;
  const bool resizable =
      state.kind == SurfaceKind::kScreen || (state.flags & kSurfaceResizable) != 0;
  return SDL_WINDOW_HIDDEN | (resizable ? SDL_WINDOW_RESIZABLE : 0U);
}

// What a decorated window of this size may have on the display it will be on.
Point fitting_size(const SurfaceState& state) {
  SDL_Rect usable{};
  Point size{static_cast<int>(state.width), static_cast<int>(state.height)};
  if (state.kind == SurfaceKind::kScreen && SDL_GetDisplayUsableBounds(0, &usable) == 0)
    size = {std::min(size.x, usable.w), std::min(size.y, usable.h)};
  return size;
}

}  // namespace

uint32_t sdl_format(uint32_t format) {
  // SDL names the bits of a little-endian word, virtio the bytes in memory. Alpha is ignored: the
  // texture is not blended.
  switch (byte_order(format).red) {
    case 0:
      return SDL_PIXELFORMAT_ABGR8888;
    case 1:
      return SDL_PIXELFORMAT_BGRA8888;
    case 3:
      return SDL_PIXELFORMAT_RGBA8888;
    default:
      return SDL_PIXELFORMAT_ARGB8888;
  }
}

Result<std::unique_ptr<GuestWindow>> GuestWindow::create(const SurfaceState& surface,
                                                         const std::string& vm_name,
                                                         GuestWindow* parent) {
  std::unique_ptr<GuestWindow> window(new GuestWindow(vm_name));
  window->x_state = surface;
  const Point size = fitting_size(surface);
  const bool screen = surface.kind == SurfaceKind::kScreen;
  window->x_window.reset(SDL_CreateWindow("lethe", screen ? SDL_WINDOWPOS_UNDEFINED : surface.x,
                                          screen ? SDL_WINDOWPOS_UNDEFINED : surface.y, size.x,
                                          size.y, window_flags(surface)));
  if (!window->x_window) return host_error("cannot make a window: {}", SDL_GetError());
  window->x_renderer.reset(SDL_CreateRenderer(window->x_window.get(), -1, 0));
  if (!window->x_renderer)
    window->x_renderer.reset(SDL_CreateRenderer(window->x_window.get(), -1, SDL_RENDERER_SOFTWARE));
  if (!window->x_renderer) return host_error("cannot draw in a window: {}", SDL_GetError());
  window->belong_to(parent);
  if (!screen) window->place_window(parent);
  window->set_title("");
  window->show_or_hide();
  return window;
}

void GuestWindow::set_title(const std::string& suffix) {
  x_title_suffix = suffix;
  // The VM's name comes first: a guest can't pass its window off as another VM's, or the host's.
  std::string title = "[" + x_vm_name + "]";
  if (!is_screen()) title += " " + x_state.title;
  if (is_screen() && x_state.output > 0) title += fmt::format(" screen {}", x_state.output);
  SDL_SetWindowTitle(x_window.get(), (title + suffix).c_str());
}

// A popup is where the guest has it, seen from its parent, wherever that is on the host.
void GuestWindow::place_window(GuestWindow* parent) {
  Point at{x_state.x, x_state.y};
  if (parent != nullptr && !parent->is_screen()) {
    int x = 0, y = 0;
    SDL_GetWindowPosition(parent->x_window.get(), &x, &y);
    at = {x + (x_state.x - parent->x_state.x), y + (x_state.y - parent->x_state.y)};
  }
  SDL_SetWindowPosition(x_window.get(), at.x, at.y);
}

// SDL can't take a parent away again, only give another one.
void GuestWindow::belong_to(GuestWindow* parent) {
  if (parent == nullptr || is_popup() || parent->surface() == x_belongs_to) return;
  SDL_SetWindowModalFor(x_window.get(), parent->x_window.get());
  x_belongs_to = parent->surface();
}

void GuestWindow::show_or_hide() {
  // A screen's window is there before the guest draws; a guest's window once it has a picture.
  const bool wanted = x_has_picture && (x_state.flags & kSurfaceVisible) != 0;
  const bool visible = is_screen() || (wanted && (!is_popup() || x_owner_shown));
  if (visible == x_shown) return;
  x_shown = visible;
  x_dirty = true;
  if (visible)
    SDL_ShowWindow(x_window.get());
  else
    SDL_HideWindow(x_window.get());
}

void GuestWindow::set_owner_shown(bool shown) {
  x_owner_shown = shown;
  show_or_hide();
}

void GuestWindow::update(const SurfaceState& state, GuestWindow* parent, bool resize) {
  const SurfaceState before = std::exchange(x_state, state);
  x_state.flags = (state.flags & ~kSurfacePopup) | (before.flags & kSurfacePopup);
  if (before.title != state.title) set_title(x_title_suffix);
  belong_to(parent);
  resize = resize && (before.width != state.width || before.height != state.height);
  if (resize && !full_screen()) {
    const Point size = fitting_size(state);
    SDL_SetWindowSize(x_window.get(), size.x, size.y);
  }
  if (!is_screen() && (before.x != state.x || before.y != state.y)) place_window(parent);
  if (((before.flags ^ state.flags) & kSurfaceResizable) != 0 && !is_screen())
    SDL_SetWindowResizable(x_window.get(),
                           (state.flags & kSurfaceResizable) != 0 ? SDL_TRUE : SDL_FALSE);
  x_dirty = true;
  show_or_hide();
}

bool GuestWindow::ensure_texture(const FrameView& frame) {
  const uint32_t format = sdl_format(frame.format);
  if (x_texture && x_texture_format == format && x_width == frame.width && x_height == frame.height)
    return false;
  x_texture.reset(SDL_CreateTexture(x_renderer.get(), format, SDL_TEXTUREACCESS_STREAMING,
                                    static_cast<int>(frame.width), static_cast<int>(frame.height)));
  x_texture_format = format;
  x_width = frame.width;
  x_height = frame.height;
  if (x_texture) SDL_SetTextureBlendMode(x_texture.get(), SDL_BLENDMODE_NONE);
  return true;
}

void GuestWindow::show(const FrameView& frame) {
  x_dirty = true;
  x_has_picture = frame.pixels != nullptr;
  if (x_has_picture) {
    const Rect damage =
        ensure_texture(frame) ? Rect{0, 0, frame.width, frame.height} : frame.damage;
    const SDL_Rect rect{static_cast<int>(damage.x), static_cast<int>(damage.y),
                        static_cast<int>(damage.width), static_cast<int>(damage.height)};
    if (x_texture && !damage.empty())
      SDL_UpdateTexture(
          x_texture.get(), &rect,
          frame.pixels + size_t{damage.y} * frame.stride + size_t{damage.x} * kPixelBytes,
          static_cast<int>(frame.stride));
  }
  show_or_hide();
}

void GuestWindow::set_cursor(const CursorView& cursor) {
  x_cursor_known = true;
  x_cursor.reset();
  if (cursor.pixels == nullptr) return;
  // SDL keeps what it is given: a copy, not the guest's memory.
  const SDL_Rect all{0, 0, static_cast<int>(cursor.width), static_cast<int>(cursor.height)};
  SDL_Surface* image =
      SDL_CreateRGBSurfaceWithFormat(0, all.w, all.h, 32, SDL_PIXELFORMAT_ARGB8888);
  if (image == nullptr) return;
  for (int y = 0; y < all.h; ++y)
    std::memcpy(static_cast<std::byte*>(image->pixels) + static_cast<ptrdiff_t>(y) * image->pitch,
                cursor.pixels + size_t{cursor.width} * kPixelBytes * static_cast<size_t>(y),
                size_t{cursor.width} * kPixelBytes);
  x_cursor.reset(
      SDL_CreateColorCursor(image, static_cast<int>(cursor.hot_x), static_cast<int>(cursor.hot_y)));
  SDL_FreeSurface(image);
}

void GuestWindow::use_cursor() const {
  SDL_SetCursor(x_cursor ? x_cursor.get() : SDL_GetDefaultCursor());
  SDL_ShowCursor(x_cursor_known && !x_cursor ? SDL_DISABLE : SDL_ENABLE);
}

void GuestWindow::draw(const std::string& notice, Scale scale) {
  if (!x_dirty || !x_shown) return;
  x_dirty = false;
  int width = 0, height = 0;
  SDL_GetRendererOutputSize(x_renderer.get(), &width, &height);
  SDL_SetRenderDrawColor(x_renderer.get(), 0, 0, 0, 255);
  SDL_RenderClear(x_renderer.get());
  if (x_texture && x_has_picture) {
    const Placement at = place(width, height, x_width, x_height, scale);
    const SDL_Rect rect{at.x, at.y, at.width, at.height};
    SDL_SetTextureScaleMode(x_texture.get(), at.whole ? SDL_ScaleModeNearest : SDL_ScaleModeLinear);
    SDL_RenderCopy(x_renderer.get(), x_texture.get(), nullptr, &rect);
  }
  if (!notice.empty()) draw_notice(x_renderer.get(), notice, width, height);
  SDL_RenderPresent(x_renderer.get());
}

Point GuestWindow::picture_point(int x, int y, Scale scale) const {
  int width = 0, height = 0;
  SDL_GetWindowSize(x_window.get(), &width, &height);
  const uint32_t w = x_has_picture ? x_width : x_state.width;
  const uint32_t h = x_has_picture ? x_height : x_state.height;
  return to_picture(place(width, height, w, h, scale), {x, y}, w, h);
}

bool GuestWindow::differs_from_guest() const {
  int width = 0, height = 0, x = 0, y = 0;
  SDL_GetWindowSize(x_window.get(), &width, &height);
  SDL_GetWindowPosition(x_window.get(), &x, &y);
  if (is_popup()) return false;  // the guest places them
  return width != static_cast<int>(x_state.width) || height != static_cast<int>(x_state.height) ||
         (!is_screen() && (x != x_state.x || y != x_state.y));
}

void GuestWindow::to_guest_size() {
  if (full_screen()) return;
  SDL_SetWindowSize(x_window.get(), static_cast<int>(x_state.width),
                    static_cast<int>(x_state.height));
}

bool GuestWindow::full_screen() const {
  return (SDL_GetWindowFlags(x_window.get()) & SDL_WINDOW_FULLSCREEN_DESKTOP) != 0;
}

void GuestWindow::toggle_full_screen() {
  SDL_SetWindowFullscreen(x_window.get(), full_screen() ? 0 : SDL_WINDOW_FULLSCREEN_DESKTOP);
  x_dirty = true;
}

}  // namespace lethe::gui
