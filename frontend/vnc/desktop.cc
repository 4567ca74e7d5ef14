#include "frontend/vnc/desktop.h"

#include <algorithm>
#include <iterator>

namespace lethe::gui {
namespace {

// Of the desktop, whatever places a guest gives its windows: VNC's own limit is 65535, a pixel is 4
// bytes of ours.
constexpr int64_t kSideMax = 8192;

Rect intersection(const Rect& a, const Rect& b) {
  const uint32_t left = std::max(a.x, b.x), top = std::max(a.y, b.y);
  const uint32_t right = std::min(a.x + a.width, b.x + b.width);
  const uint32_t bottom = std::min(a.y + a.height, b.y + b.height);
  if (left >= right || top >= bottom) return {};
  return {left, top, right - left, bottom - top};
}

Rect around(const Rect& a, const Rect& b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  const uint32_t left = std::min(a.x, b.x), top = std::min(a.y, b.y);
  return {left, top, std::max(a.x + a.width, b.x + b.width) - left,
          std::max(a.y + a.height, b.y + b.height) - top};
}

// 0xRRGGBB to red in the lowest byte.
uint32_t to_vnc(Pixel pixel) { return __builtin_bswap32(pixel) >> 8; }

}  // namespace

bool Desktop::visible(const Shown& shown) const {
  return shown.state.kind == SurfaceKind::kWindow && (shown.state.flags & kSurfaceVisible) != 0 &&
         !shown.picture.empty();
}

bool Desktop::shows_windows() const {
  if (x_show != Show::kAuto) return x_show == Show::kWindows;
  return std::any_of(x_surfaces.begin(), x_surfaces.end(),
                     [this](const auto& each) { return visible(each.second); });
}

std::optional<uint64_t> Desktop::screen() const {
  if (x_windows) return std::nullopt;
  for (const auto& [id, shown] : x_surfaces)
    if (shown.state.kind == SurfaceKind::kScreen && shown.state.output == x_output) return id;
  return std::nullopt;
}

Rect Desktop::on_desktop(const Shown& shown) const {
  const bool window = shown.state.kind == SurfaceKind::kWindow;
  const int64_t x = window ? shown.state.x : 0, y = window ? shown.state.y : 0;
  const int64_t right = std::min<int64_t>(x + shown.picture.width, x_width);
  const int64_t bottom = std::min<int64_t>(y + shown.picture.height, x_height);
  const int64_t left = std::max<int64_t>(x, 0), top = std::max<int64_t>(y, 0);
  if (left >= right || top >= bottom) return {};
  return {static_cast<uint32_t>(left), static_cast<uint32_t>(top),
          static_cast<uint32_t>(right - left), static_cast<uint32_t>(bottom - top)};
}

// The desktop's size, and whether it is of windows. It grows with the windows, and does not shrink
// under those that are there.
void Desktop::layout() {
  const bool windows = shows_windows();
  int64_t width = kEmptyWidth, height = kEmptyHeight;
  if (windows && x_windows) width = x_width, height = x_height;
  const bool was_windows = std::exchange(x_windows, windows);
  for (const auto& [id, shown] : x_surfaces) {
    if (windows && visible(shown)) {
      width = std::max<int64_t>(width, int64_t{shown.state.x} + shown.picture.width);
      height = std::max<int64_t>(height, int64_t{shown.state.y} + shown.picture.height);
    }
  }
  if (const auto id = screen(); id && !x_surfaces.at(*id).picture.empty()) {
    width = x_surfaces.at(*id).picture.width;
    height = x_surfaces.at(*id).picture.height;
  }
  width = std::min(width, kSideMax);
  height = std::min(height, kSideMax);
  if (width == x_width && height == x_height && was_windows == windows) return;
  x_width = static_cast<uint32_t>(width);
  x_height = static_cast<uint32_t>(height);
  x_damage = {0, 0, x_width, x_height};
}

void Desktop::damage(const Rect& rect) {
  x_damage = around(x_damage, intersection(rect, {0, 0, x_width, x_height}));
}

Rect Desktop::take_damage() {
  return intersection(std::exchange(x_damage, {}), {0, 0, x_width, x_height});
}

void Desktop::set_surface(const SurfaceState& surface) {
  Shown& shown = x_surfaces[surface.id];
  if (shown.state.id != 0) damage(on_desktop(shown));
  if (shown.state.id == 0 && surface.kind == SurfaceKind::kWindow) x_stack.push_back(surface.id);
  shown.state = surface;
  layout();
  damage(on_desktop(shown));
}

void Desktop::remove_surface(uint64_t surface) {
  const auto found = x_surfaces.find(surface);
  if (found == x_surfaces.end()) return;
  damage(on_desktop(found->second));
  x_surfaces.erase(found);
  std::erase(x_stack, surface);
  layout();
}

void Desktop::set_frame(uint64_t surface, const FrameView& frame) {
  const auto found = x_surfaces.find(surface);
  if (found == x_surfaces.end()) return;
  Shown& shown = found->second;
  const bool same = frame.pixels != nullptr && shown.picture.width == frame.width &&
                    shown.picture.height == frame.height;
  const Rect before = on_desktop(shown);
  const Rect changed = shown.picture.update(frame);
  if (frame.pixels == nullptr) shown.picture = {};
  const bool window = shown.state.kind == SurfaceKind::kWindow;
  if (!same) {
    layout();
    damage(before);
    if (window ? x_windows : screen() == surface) damage(on_desktop(shown));
    return;
  }
  if (window ? !x_windows || !visible(shown) : screen() != surface) return;
  const int64_t x = window ? shown.state.x : 0, y = window ? shown.state.y : 0;
  const int64_t left = std::clamp<int64_t>(x + changed.x, 0, x_width);
  const int64_t top = std::clamp<int64_t>(y + changed.y, 0, x_height);
  const int64_t right = std::clamp<int64_t>(x + changed.x + changed.width, 0, x_width);
  const int64_t bottom = std::clamp<int64_t>(y + changed.y + changed.height, 0, x_height);
  damage({static_cast<uint32_t>(left), static_cast<uint32_t>(top),
          static_cast<uint32_t>(right - left), static_cast<uint32_t>(bottom - top)});
}

void Desktop::draw(const Rect& rect, uint32_t* to, size_t stride) const {
  for (uint32_t y = 0; y < rect.height; ++y) std::fill_n(to + y * stride, rect.width, 0U);
  const auto put = [&](const Shown& shown) {
    const Rect part = intersection(on_desktop(shown), rect);
    const bool window = shown.state.kind == SurfaceKind::kWindow;
    const int64_t dx = window ? shown.state.x : 0, dy = window ? shown.state.y : 0;
    for (uint32_t y = part.y; y < part.y + part.height; ++y) {
      const Pixel* from = shown.picture.line(static_cast<uint32_t>(y - dy)) + (part.x - dx);
      std::transform(from, from + part.width, to + (y - rect.y) * stride + (part.x - rect.x),
                     to_vnc);
    }
  };
  if (const auto id = screen()) put(x_surfaces.at(*id));
  if (!x_windows) return;
  for (const uint64_t id : x_stack)
    if (const Shown& shown = x_surfaces.at(id); visible(shown)) put(shown);
}

std::optional<Desktop::Hit> Desktop::at(int32_t x, int32_t y) const {
  if (const auto id = screen()) return inside(*id, x, y);
  if (!x_windows) return std::nullopt;
  for (auto id = x_stack.rbegin(); id != x_stack.rend(); ++id) {
    const Shown& shown = x_surfaces.at(*id);
    const Rect rect = on_desktop(shown);
    if (visible(shown) && x >= 0 && y >= 0 && static_cast<uint32_t>(x) - rect.x < rect.width &&
        static_cast<uint32_t>(y) - rect.y < rect.height)
      return inside(*id, x, y);
  }
  return std::nullopt;
}

Desktop::Hit Desktop::inside(uint64_t surface, int32_t x, int32_t y) const {
  const auto found = x_surfaces.find(surface);
  if (found == x_surfaces.end()) return {};
  const SurfaceState& state = found->second.state;
  if (state.kind == SurfaceKind::kScreen) return {surface, x, y};
  const auto along = [](int32_t place, int32_t start) {
    return static_cast<int32_t>(std::clamp<int64_t>(int64_t{place} - start, -0x8000, 0x7FFF));
  };
  return {surface, along(x, state.x), along(y, state.y)};
}

bool Desktop::takes_focus(uint64_t surface) const {
  const auto found = x_surfaces.find(surface);
  return found != x_surfaces.end() && (found->second.state.flags & kSurfacePopup) == 0;
}

std::optional<uint64_t> Desktop::first_focus() const {
  if (const auto id = screen()) return id;
  for (auto id = x_stack.rbegin(); x_windows && id != x_stack.rend(); ++id)
    if (visible(x_surfaces.at(*id)) && takes_focus(*id)) return *id;
  return std::nullopt;
}

void Desktop::raise(uint64_t surface) {
  // What belongs to it (dialogs, menus) stays above it. A guest's parents may go in a circle.
  std::vector<uint64_t> family = {surface};
  for (size_t i = 0; i < family.size(); ++i)
    for (const uint64_t id : x_stack)
      if (x_surfaces.at(id).state.parent == family[i] &&
          std::find(family.begin(), family.end(), id) == family.end())
        family.push_back(id);
  const auto belongs = [&](uint64_t id) {
    return std::find(family.begin(), family.end(), id) != family.end();
  };
  std::vector<uint64_t> stack;
  std::copy_if(x_stack.begin(), x_stack.end(), std::back_inserter(stack),
               [&](uint64_t id) { return !belongs(id); });
  std::copy_if(x_stack.begin(), x_stack.end(), std::back_inserter(stack), belongs);
  if (stack == x_stack) return;
  x_stack.swap(stack);
  for (const uint64_t id : family)
    if (const auto found = x_surfaces.find(id); found != x_surfaces.end())
      damage(on_desktop(found->second));
}

}  // namespace lethe::gui
