#include "devices/virtio/gpu/window_context.h"

#include <algorithm>
#include <cstring>

#include "devices/virtio/gpu/pixels.h"

namespace lethe {
namespace {

constexpr uint32_t kOk = VIRTIO_GPU_RESP_OK_NODATA;
constexpr uint32_t kBad = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;

// The flags have the same bits in both protocols.
static_assert(window::kWindowVisible == gui::kSurfaceVisible &&
              window::kWindowDialog == gui::kSurfaceDialog &&
              window::kWindowPopup == gui::kSurfacePopup &&
              window::kWindowResizable == gui::kSurfaceResizable &&
              window::kWindowFlags == gui::kSurfaceFlags);
static_assert(window::kSidePixelsMax == gui::kSidePixelsMax);

}  // namespace

WindowContext::~WindowContext() {
  for (auto& [id, window] : x_windows) detach(window);
  x_gui.forget_listener(*this);
}

WindowContext::Window* WindowContext::find(uint32_t id) {
  const auto found = x_windows.find(id);
  return found == x_windows.end() ? nullptr : &found->second;
}

// A context may use the resources that were attached to it (5.7.6.9), no others.
Resource* WindowContext::usable(uint32_t id) {
  Resource* const resource = x_resources.find(id);
  if (resource == nullptr || !resource->blob()) return nullptr;
  return x_resources.attached(x_serial, *resource) ? resource : nullptr;
}

// --- commands

WindowContext::Outcome WindowContext::run(std::span<const uint8_t> commands) {
  x_copy_limit = x_resources.copied() + kCopyBytesMax;
  while (!commands.empty()) {
    window::CommandHeader header;
    if (commands.size() < sizeof header) return {kBad};
    std::memcpy(&header, commands.data(), sizeof header);
    if (header.bytes < sizeof header || header.bytes > commands.size()) return {kBad};
    const uint32_t response = run_one(header.command, commands.first(header.bytes));
    if (response != kOk) return {response};
    commands = commands.subspan(header.bytes);
    if (header.command == window::kPoll)
      return commands.empty() ? Outcome{kOk, true} : Outcome{kBad};
  }
  return {kOk};
}

uint32_t WindowContext::run_one(uint32_t command, std::span<const uint8_t> bytes) {
  // A command has its own size, no other.
  const auto as = [&]<typename T>(uint32_t (WindowContext::*handle)(const T&)) {
    T value;
    if (bytes.size() != sizeof value) return kBad;
    std::memcpy(&value, bytes.data(), sizeof value);
    return (this->*handle)(value);
  };
  switch (command) {
    case window::kSetEventRing:
      return as(&WindowContext::set_event_ring);
    case window::kWindowCreate:
      return as(&WindowContext::create);
    case window::kWindowTitle:
      return as(&WindowContext::title);
    case window::kWindowGeometry:
      return as(&WindowContext::geometry);
    case window::kWindowAttach:
      return as(&WindowContext::attach);
    case window::kWindowDamage:
      return as(&WindowContext::damage);
    case window::kWindowDestroy:
      return as(&WindowContext::destroy);
    case window::kPoll:
      return as(&WindowContext::poll);
    default:
      return kBad;
  }
}

uint32_t WindowContext::set_event_ring(const window::SetEventRing& command) {
  if (command.resource_id == 0) {
    end_ring();
    return kOk;
  }
  return start_ring(usable(command.resource_id)) ? kOk : kBad;
}

bool WindowContext::start_ring(Resource* resource) {
  if (x_ring.active() || resource == nullptr || resource->kind != Resource::Kind::kHostBlob ||
      !x_ring.start(resource->memory->data(), resource->bytes))
    return false;
  resource->event_ring = true;
  x_ring_resource = resource->id;
  return true;
}

void WindowContext::end_ring() {
  x_ring.stop();
  x_ring_resource = 0;
  x_on_events();  // nobody waits for what can't come
}

std::optional<SurfaceState> WindowContext::state_of(const window::WindowCreate& command) {
  const Window* const parent = find(command.parent);
  if ((command.flags & ~window::kWindowFlags) != 0 || !valid_size(command.width, command.height) ||
      (command.parent != 0 && (parent == nullptr || command.parent == command.window)))
    return std::nullopt;
  return SurfaceState{.kind = gui::SurfaceKind::kWindow,
                      .flags = command.flags,
                      .parent = parent != nullptr ? parent->surface : 0,
                      .x = command.x,
                      .y = command.y,
                      .width = command.width,
                      .height = command.height,
                      .title = {}};
}

uint32_t WindowContext::create(const window::WindowCreate& command) {
  auto state = state_of(command);
  if (command.window == 0 || !state || find(command.window) != nullptr ||
      x_windows.size() >= window::kWindowsMax)
    return kBad;
  const auto surface = x_gui.add_surface(*state, *this);
  if (!surface) return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  Window& window = x_windows[command.window];
  window.surface = *surface;
  window.parent = command.parent;
  window.state = std::move(*state);
  x_by_surface.emplace(*surface, command.window);
  return kOk;
}

uint32_t WindowContext::geometry(const window::WindowCreate& command) {
  Window* const window = find(command.window);
  auto state = state_of(command);
  if (window == nullptr || !state) return kBad;
  state->title = std::move(window->state.title);
  window->parent = command.parent;
  window->state = std::move(*state);
  x_gui.update_surface(window->surface, window->state);
  return kOk;
}

uint32_t WindowContext::title(const window::WindowTitle& command) {
  Window* const window = find(command.window);
  const size_t length = ::strnlen(command.title, sizeof command.title);
  if (window == nullptr || length == sizeof command.title) return kBad;
  window->state.title.assign(command.title, length);  // Gui cleans it
  x_gui.update_surface(window->surface, window->state);
  return kOk;
}

uint32_t WindowContext::attach(const window::WindowAttach& command) {
  Window* const window = find(command.window);
  if (window == nullptr) return kBad;
  if (command.resource_id == 0) {
    detach(*window);
    x_gui.present(window->surface, {}, {});
    return kOk;
  }
  return show(*window, usable(command.resource_id), command);
}

uint32_t WindowContext::show(Window& window, Resource* resource,
                             const window::WindowAttach& command) {
  const uint64_t line_bytes = uint64_t{command.width} * kPixelBytes;
  if (resource == nullptr || !gui::known_format(command.format) ||
      !valid_size(command.width, command.height) || command.stride < line_bytes ||
      command.stride % kPixelBytes != 0 || command.offset % kPixelBytes != 0 ||
      !lines_fit(resource->bytes, command.offset, command.stride, line_bytes, command.height))
    return kBad;
  if (x_resources.show(*resource) == nullptr) return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  ++resource->shown;
  detach(window);
  window.resource = resource->id;
  window.content = {.buffer = resource->buffer,
                    .offset = command.offset,
                    .stride = command.stride,
                    .format = command.format,
                    .width = command.width,
                    .height = command.height};
  const Rect whole{0, 0, command.width, command.height};
  if (!refresh(window, whole)) return kBad;
  x_gui.present(window.surface, window.content, whole);
  return kOk;
}

// Without a word to the frontends.
void WindowContext::detach(Window& window) {
  if (Resource* const resource = x_resources.find(window.resource)) --resource->shown;
  window.resource = 0;
  window.content = {};
}

// False if this SUBMIT_3D has had enough copied.
bool WindowContext::refresh(const Window& window, const Rect& damage) {
  const Resource* const resource = x_resources.find(window.resource);
  if (resource == nullptr || resource->kind != Resource::Kind::kGuestBlob) return true;
  if (x_resources.copied() > x_copy_limit) return false;
  const SurfaceContent& content = window.content;
  x_resources.refresh(
      *resource,
      content.offset + uint64_t{damage.y} * content.stride + uint64_t{damage.x} * kPixelBytes,
      content.stride, damage.width, damage.height);
  return true;
}

uint32_t WindowContext::damage(const window::WindowDamage& command) {
  Window* const window = find(command.window);
  if (window == nullptr) return kBad;
  const SurfaceContent& content = window->content;
  const Rect part = common_part({command.x, command.y, command.width, command.height},
                                {0, 0, content.width, content.height});
  if (!refresh(*window, part)) return kBad;
  const uint64_t frame = x_gui.present(window->surface, content, part);
  uint32_t& count = window->presented_count;
  if (count < window->presented.size()) ++count;
  window->presented[count - 1] = {frame, command.serial};
  return kOk;
}

uint32_t WindowContext::destroy(const window::WindowDestroy& command) {
  Window* const window = find(command.window);
  if (window == nullptr) return kBad;
  for (auto& [id, other] : x_windows) {
    if (other.parent != command.window) continue;
    other.parent = 0;
    other.state.parent = 0;
    x_gui.update_surface(other.surface, other.state);
  }
  detach(*window);
  x_gui.remove_surface(window->surface);
  x_by_surface.erase(window->surface);
  x_windows.erase(command.window);
  x_ring.forget_window(command.window);
  return kOk;
}

uint32_t WindowContext::poll(const window::Poll& command) {
  return x_ring.set_tail(command.tail) ? kOk : kBad;
}

void WindowContext::forget(Resource& resource) {
  if (x_ring_resource == resource.id) end_ring();
  if (resource.shown == 0) return;
  for (auto& [id, window] : x_windows) {
    if (window.resource != resource.id) continue;
    detach(window);
    x_gui.present(window.surface, {}, {});
  }
}

// --- events

void WindowContext::event(SurfaceId surface, uint32_t type, uint32_t a, uint32_t b) {
  const auto found = x_by_surface.find(surface);
  if (found == x_by_surface.end()) return;
  x_ring.push(
      {.type = type, .window = found->second, .a = a, .b = b, .c = 0, .d = 0, .reserved = {}});
  x_on_events();
}

void WindowContext::key(SurfaceId surface, uint32_t code, bool down) {
  event(surface, window::kEventKey, code, down ? 1 : 0);
}

void WindowContext::button(SurfaceId surface, uint32_t code, bool down) {
  event(surface, window::kEventButton, code, down ? 1 : 0);
}

void WindowContext::wheel(SurfaceId surface, int32_t vertical, int32_t horizontal) {
  event(surface, window::kEventWheel, static_cast<uint32_t>(vertical),
        static_cast<uint32_t>(horizontal));
}

void WindowContext::focus(SurfaceId surface, bool focused) {
  event(surface, window::kEventFocus, focused ? 1 : 0);
}

void WindowContext::close(SurfaceId surface) { event(surface, window::kEventClose, 0); }

void WindowContext::motion(SurfaceId surface, uint32_t x, uint32_t y) {
  const auto found = x_by_surface.find(surface);
  if (found == x_by_surface.end()) return;
  x_ring.motion(found->second, x, y);
  x_on_events();
}

void WindowContext::configure(SurfaceId surface, int32_t x, int32_t y, uint32_t width,
                              uint32_t height) {
  const auto found = x_by_surface.find(surface);
  if (found == x_by_surface.end()) return;
  x_ring.configure(found->second, x, y, width, height);
  x_on_events();
}

void WindowContext::done_reading(SurfaceId surface, uint64_t frame) {
  const auto found = x_by_surface.find(surface);
  if (found == x_by_surface.end()) return;
  Window& window = x_windows.at(found->second);
  const auto end = window.presented.begin() + window.presented_count;
  const auto unread = std::find_if(window.presented.begin(), end,
                                   [&](const auto& entry) { return entry.frame > frame; });
  if (unread == window.presented.begin()) return;
  x_ring.done(found->second, std::prev(unread)->serial);
  std::move(unread, end, window.presented.begin());
  window.presented_count = static_cast<uint32_t>(end - unread);
  x_on_events();
}

void WindowContext::resource_released(uint32_t resource) {
  x_ring.released(resource);
  x_on_events();
}

// --- snapshots

void WindowContext::save(StateWriter& to) const {
  to.number(x_ring_resource);
  if (x_ring.active()) x_ring.save(to);
  to.number(static_cast<uint32_t>(x_windows.size()));
  for (const auto& [id, window] : x_windows) {
    to.number(id);
    to.number(window.parent);
    to.number(window.state.flags);
    to.number(static_cast<uint32_t>(window.state.x));
    to.number(static_cast<uint32_t>(window.state.y));
    to.number(window.state.width);
    to.number(window.state.height);
    to.text(window.state.title);
    to.number(window.resource);
    to.number(window.content.offset);
    to.number(window.content.stride);
    to.number(window.content.format);
    to.number(window.content.width);
    to.number(window.content.height);
    to.number(window.presented_count);
    for (uint32_t i = 0; i < window.presented_count; ++i) to.number(window.presented[i].serial);
  }
}

// By the commands that made it; its parent, which may come behind it, by the last of them, later.
uint32_t WindowContext::restore_window(StateReader& from, window::WindowCreate& geometry_later) {
  window::WindowCreate command{};
  command.window = from.number<uint32_t>();
  const auto parent = from.number<uint32_t>();
  command.flags = from.number<uint32_t>();
  command.x = static_cast<int32_t>(from.number<uint32_t>());
  command.y = static_cast<int32_t>(from.number<uint32_t>());
  command.width = from.number<uint32_t>();
  command.height = from.number<uint32_t>();
  window::WindowTitle named{};
  named.window = command.window;
  const std::string text = from.text(sizeof named.title - 1);
  text.copy(named.title, sizeof named.title - 1);
  window::WindowAttach shown{};
  shown.resource_id = from.number<uint32_t>();
  shown.offset = from.number<uint64_t>();
  shown.stride = from.number<uint32_t>();
  shown.format = from.number<uint32_t>();
  shown.width = from.number<uint32_t>();
  shown.height = from.number<uint32_t>();
  const auto presented = from.number<uint32_t>();
  if (!from.ok() || create(command) != kOk) return kBad;
  Window& window = *find(command.window);
  if (title(named) != kOk || presented > window.presented.size()) return kBad;
  // Not by attach(): what a window shows may have been detached from the context since.
  Resource* const resource = x_resources.find(shown.resource_id);
  if (shown.resource_id != 0 &&
      (resource == nullptr || !resource->blob() || show(window, resource, shown) != kOk))
    return kBad;
  // Nobody has them to read: the guest hears of them soon.
  for (uint32_t i = 0; i < presented; ++i)
    window.presented[window.presented_count++] = {x_gui.present(window.surface, window.content, {}),
                                                  from.number<uint32_t>()};
  geometry_later = command;
  geometry_later.parent = parent;
  return kOk;
}

void WindowContext::restore(StateReader& from) {
  x_copy_limit = UINT64_MAX;  // bounded by the windows there can be
  if (const auto ring = from.number<uint32_t>(); ring != 0) {
    if (!start_ring(x_resources.find(ring))) return from.fail("no event ring can be there");
    x_ring.restore(from);
  }
  const auto count = from.number<uint32_t>();
  std::vector<window::WindowCreate> places;
  for (uint32_t i = 0; i < count && from.ok(); ++i)
    if (restore_window(from, places.emplace_back()) != kOk) from.fail("a window can't be made");
  for (const window::WindowCreate& place : places)
    if (from.ok() && place.parent != 0 && geometry(place) != kOk)
      from.fail("a window has a parent that is not there");
}

}  // namespace lethe
