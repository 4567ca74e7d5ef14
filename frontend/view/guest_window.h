// One host window that shows one surface of the guest (SDL2). Main thread.
#pragma once

#include <SDL2/SDL.h>

#include <memory>
#include <set>
#include <string>

#include "base/result.h"
#include "frontend/client.h"
#include "frontend/view/layout.h"

namespace lethe::gui {

struct SdlDeleter {
  void operator()(SDL_Window* window) const { SDL_DestroyWindow(window); }
  void operator()(SDL_Renderer* renderer) const { SDL_DestroyRenderer(renderer); }
  void operator()(SDL_Texture* texture) const { SDL_DestroyTexture(texture); }
  void operator()(SDL_Cursor* cursor) const { SDL_FreeCursor(cursor); }
};
template <typename T>
using SdlPtr = std::unique_ptr<T, SdlDeleter>;

class GuestWindow {
 public:
  // `parent`: the host window of the surface's parent, or null.
  [[nodiscard]] static Result<std::unique_ptr<GuestWindow>> create(const SurfaceState& surface,
                                                                   const std::string& vm_name,
                                                                   GuestWindow* parent);

  [[nodiscard]] uint64_t surface() const { return x_state.id; }
  [[nodiscard]] const SurfaceState& state() const { return x_state; }
  [[nodiscard]] SDL_Window* window() const { return x_window.get(); }
  [[nodiscard]] bool is_screen() const { return x_state.kind == SurfaceKind::kScreen; }
  // For good: a host window can't become one or cease to be one.
  [[nodiscard]] bool is_popup() const { return (x_state.flags & kSurfacePopup) != 0; }
  [[nodiscard]] bool shown() const { return x_shown; }

  // The guest changed it: title, place, size (followed if `resize`), whether it is to be seen.
  void update(const SurfaceState& state, GuestWindow* parent, bool resize);
  // A popup is to be seen only while the window is that it belongs to.
  void set_owner_shown(bool shown);
  // Uploads what is damaged, straight from the guest's memory.
  void show(const FrameView& frame);
  void set_cursor(const CursorView& cursor);
  // Makes SDL's cursor the one of this window.
  void use_cursor() const;
  // Draws if anything has changed since; `notice` is written over the picture if not empty.
  void draw(const std::string& notice, Scale scale);
  void mark_dirty() { x_dirty = true; }

  [[nodiscard]] Point picture_point(int x, int y, Scale scale) const;
  // Whether the user has made it another size, or put it elsewhere, than the guest has it.
  [[nodiscard]] bool differs_from_guest() const;
  void to_guest_size();  // one pixel of the guest is one of the host
  void toggle_full_screen();
  [[nodiscard]] bool full_screen() const;
  void set_title(const std::string& suffix);

  std::set<uint32_t> keys_down;  // evdev codes the guest was told of

 private:
  explicit GuestWindow(std::string vm_name) : x_vm_name(std::move(vm_name)) {}
  void place_window(GuestWindow* parent);
  void belong_to(GuestWindow* parent);
  void show_or_hide();
  bool ensure_texture(const FrameView& frame);

  std::string x_vm_name;
  SurfaceState x_state;
  std::string x_title_suffix;
  SdlPtr<SDL_Window> x_window;
  SdlPtr<SDL_Renderer> x_renderer;
  SdlPtr<SDL_Texture> x_texture;
  uint32_t x_texture_format = 0;       // SDL's
  uint32_t x_width = 0, x_height = 0;  // of the picture
  bool x_has_picture = false;
  bool x_dirty = true;
  bool x_shown = false;
  uint64_t x_belongs_to = 0;   // the parent that the window manager knows of
  bool x_owner_shown = false;  // of a popup
  SdlPtr<SDL_Cursor> x_cursor;
  bool x_cursor_known = false;  // the guest has said which, or none
};

// SDL's name for a VIRTIO_GPU_FORMAT_*.
[[nodiscard]] uint32_t sdl_format(uint32_t format);

}  // namespace lethe::gui
