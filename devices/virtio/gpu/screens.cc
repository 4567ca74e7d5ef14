#include "devices/virtio/gpu/screens.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "devices/gui/channel_message.h"
#include "devices/virtio/gpu/edid.h"

namespace lethe {

Screens::~Screens() { x_gui.forget_listener(*this); }

Result<> Screens::open(uint32_t count, uint32_t width, uint32_t height) {
  x_screens.resize(count);
  for (Screen& screen : x_screens) {
    screen.wanted_width = width;
    screen.wanted_height = height;
  }
  for (size_t i = 0; i < x_screens.size(); ++i) {
    LETHE_TRY_ASSIGN(x_screens[i].surface, x_gui.add_surface(state(i), *this));
  }
  return {};
}

SurfaceState Screens::state(size_t index) const {
  uint64_t left = 0;
  for (size_t i = 0; i < index; ++i) left += x_screens[i].width();
  return {.kind = gui::SurfaceKind::kScreen,
          .flags = gui::kSurfaceVisible | gui::kSurfaceResizable,
          .x = static_cast<int32_t>(left),  // 16 screens of 16384 pixels at most
          .width = x_screens[index].width(),
          .height = x_screens[index].height(),
          .output = static_cast<uint32_t>(index),
          .title = x_screens.size() > 1 ? fmt::format("screen {}", index + 1) : ""};
}

// A screen's width moves those to its right.
void Screens::update_states() {
  for (size_t i = 0; i < x_screens.size(); ++i)
    x_gui.update_surface(x_screens[i].surface, state(i));
}

// --- what the guest is told

virtio_gpu_resp_display_info Screens::display_info() const {
  virtio_gpu_resp_display_info info{};
  uint32_t left = 0;
  for (size_t i = 0; i < x_screens.size(); ++i) {
    const Screen& screen = x_screens[i];
    info.pmodes[i].enabled = 1;
    info.pmodes[i].r = {left, 0, screen.wanted_width, screen.wanted_height};
    left += screen.wanted_width;
  }
  return info;
}

uint32_t Screens::edid(uint32_t scanout, virtio_gpu_resp_edid& answer) const {
  if (scanout >= x_screens.size()) return VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID;
  const Screen& screen = x_screens[scanout];
  const Edid edid = make_edid(screen.wanted_width, screen.wanted_height, scanout);
  answer.size = edid.size;
  std::memcpy(answer.edid, edid.bytes.data(), edid.size);
  return VIRTIO_GPU_RESP_OK_EDID;
}

void Screens::configure(SurfaceId surface, int32_t /*x*/, int32_t /*y*/, uint32_t width,
                        uint32_t height) {
  const auto found = std::ranges::find(x_screens, surface, &Screen::surface);
  if (found == x_screens.end()) return;
  width = std::clamp(width, kSideMin, gui::kSidePixelsMax);
  height = std::clamp(height, kSideMin, gui::kSidePixelsMax);
  if (found->wanted_width == width && found->wanted_height == height) return;
  found->wanted_width = width;
  found->wanted_height = height;
  update_states();
  if (on_resized) on_resized();
}

// --- what is shown

uint32_t Screens::set_scanout(const virtio_gpu_set_scanout& request) {
  if (request.scanout_id >= x_screens.size()) return VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID;
  if (request.resource_id == 0) return show_nothing(request.scanout_id);
  Resource* const resource = x_resources.find(request.resource_id);
  if (resource == nullptr || resource->blob()) return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
  const SurfaceContent whole{.buffer = resource->buffer,
                             .stride = resource->stride(),
                             .format = resource->format,
                             .width = resource->width,
                             .height = resource->height};
  return show(request.scanout_id, *resource, 0, whole, request.r);
}

uint32_t Screens::set_scanout_blob(const virtio_gpu_set_scanout_blob& request) {
  if (request.scanout_id >= x_screens.size()) return VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID;
  if (request.resource_id == 0) return show_nothing(request.scanout_id);
  Resource* const resource = x_resources.find(request.resource_id);
  if (resource == nullptr || !resource->blob()) return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
  const SurfaceContent whole{.buffer = {},
                             .stride = request.strides[0],
                             .format = request.format,
                             .width = request.width,
                             .height = request.height};
  const uint64_t line_bytes = uint64_t{whole.width} * kPixelBytes;
  if (!gui::known_format(whole.format) || !valid_size(whole.width, whole.height) ||
      whole.stride % kPixelBytes != 0 || request.offsets[0] % kPixelBytes != 0 ||
      whole.stride < line_bytes ||
      !lines_fit(resource->bytes, request.offsets[0], whole.stride, line_bytes, whole.height))
    return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  return show(request.scanout_id, *resource, request.offsets[0], whole, request.r);
}

uint32_t Screens::show_nothing(size_t index) {
  hide(x_screens[index]);
  update_states();
  return VIRTIO_GPU_RESP_OK_NODATA;
}

// `base` is the whole framebuffer, which starts at `framebuffer` in the resource.
uint32_t Screens::show(size_t index, Resource& resource, uint64_t framebuffer,
                       const SurfaceContent& base, const virtio_gpu_rect& source) {
  if (!valid_size(source.width, source.height) || !within(source, base.width, base.height))
    return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  if (x_resources.show(resource) == nullptr) return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  Screen& screen = x_screens[index];
  ++resource.shown;
  if (screen.resource != 0) release(screen.resource);
  screen.resource = resource.id;
  screen.source = source;
  screen.blob_offset = framebuffer;
  screen.whole_width = base.width;
  screen.whole_height = base.height;
  screen.content = base;
  screen.content.buffer = resource.buffer;
  screen.content.offset =
      framebuffer + uint64_t{source.y} * base.stride + uint64_t{source.x} * kPixelBytes;
  screen.content.width = source.width;
  screen.content.height = source.height;
  update_states();
  x_resources.refresh(resource, screen.content.offset, base.stride, source.width, source.height);
  x_gui.present(screen.surface, screen.content, {0, 0, source.width, source.height});
  return VIRTIO_GPU_RESP_OK_NODATA;
}

// Copies each byte once at most, however many screens show it.
void Screens::refresh(const Resource& resource, const virtio_gpu_rect& flushed) {
  const Screen* first = nullptr;
  bool one_framebuffer = true;
  Rect all;
  uint64_t begin = resource.bytes;
  uint64_t end = 0;
  const auto offset = [](const Screen& screen, const Rect& part) {
    return screen.blob_offset + uint64_t{part.y} * screen.content.stride +
           uint64_t{part.x} * kPixelBytes;
  };
  for (const Screen& screen : x_screens) {
    if (screen.resource != resource.id) continue;
    const Rect part = common_part(flushed, screen.source);
    if (part.empty()) continue;
    if (first == nullptr) first = &screen;
    one_framebuffer = one_framebuffer && screen.blob_offset == first->blob_offset &&
                      screen.content.stride == first->content.stride;
    all = united(all, part);
    begin = std::min(begin, offset(screen, part));
    const Rect last{part.x + part.width, part.y + part.height - 1, 0, 0};
    end = std::max(end, offset(screen, last));
  }
  if (first == nullptr) return;
  if (one_framebuffer)
    x_resources.refresh(resource, offset(*first, all), first->content.stride, all.width,
                        all.height);
  else  // framebuffers that may lie across one another: all from the first byte to the last
    x_resources.refresh(resource, begin, 0, static_cast<uint32_t>((end - begin) / kPixelBytes), 1);
}

uint32_t Screens::flush(const virtio_gpu_resource_flush& request) {
  const Resource* const resource = x_resources.find(request.resource_id);
  if (resource == nullptr) return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
  // A blob has no size of its own; its rectangle is one of the framebuffer's.
  if (!resource->blob() && !within(request.r, resource->width, resource->height))
    return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  if (resource->shown == 0) return VIRTIO_GPU_RESP_OK_NODATA;
  refresh(*resource, request.r);
  for (Screen& screen : x_screens) {
    if (screen.resource != resource->id) continue;
    Rect damage = common_part(request.r, screen.source);
    if (damage.empty()) continue;
    damage.x -= screen.source.x;
    damage.y -= screen.source.y;
    x_gui.present(screen.surface, screen.content, damage);
  }
  return VIRTIO_GPU_RESP_OK_NODATA;
}

void Screens::release(uint32_t resource) {
  if (Resource* const found = x_resources.find(resource)) --found->shown;
}

void Screens::hide(Screen& screen) {
  if (screen.resource == 0) return;
  release(screen.resource);
  screen.resource = 0;
  screen.content = {};
  x_gui.present(screen.surface, {}, {});
}

// --- cursor

bool Screens::update_cursor(const virtio_gpu_update_cursor& request) {
  if (request.pos.scanout_id >= x_screens.size()) return false;
  Screen& screen = x_screens[request.pos.scanout_id];
  // Where the guest thinks it is says nothing here: frontends draw it at their own pointer.
  if (request.hdr.type == VIRTIO_GPU_CMD_MOVE_CURSOR) return true;
  if (request.resource_id == 0) {
    hide_cursor(screen);
    return true;
  }
  Resource* const resource = x_resources.find(request.resource_id);
  // Linux makes X8 buffers for what it fills with alpha: both are taken as B8G8R8A8.
  if (resource == nullptr || resource->blob() || resource->width > gui::kCursorPixelsMax ||
      resource->height > gui::kCursorPixelsMax || request.hot_x >= resource->width ||
      request.hot_y >= resource->height ||
      (resource->format != VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM &&
       resource->format != VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM))
    return false;
  ++resource->shown;
  if (screen.cursor != 0) release(screen.cursor);
  screen.cursor = resource->id;
  screen.hot_x = request.hot_x;
  screen.hot_y = request.hot_y;
  x_gui.set_cursor(screen.surface, {.image = {.buffer = resource->buffer,
                                              .stride = resource->stride(),
                                              .format = VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM,
                                              .width = resource->width,
                                              .height = resource->height},
                                    .hot_x = request.hot_x,
                                    .hot_y = request.hot_y});
  return true;
}

void Screens::hide_cursor(Screen& screen) {
  if (screen.cursor == 0) return;
  release(screen.cursor);
  screen.cursor = 0;
  x_gui.set_cursor(screen.surface, {});
}

void Screens::forget(Resource& resource) {
  if (resource.shown == 0) return;
  for (Screen& screen : x_screens) {
    if (screen.resource == resource.id) hide(screen);
    if (screen.cursor == resource.id) hide_cursor(screen);
  }
  update_states();
}

void Screens::clear() {
  for (Screen& screen : x_screens) {
    hide(screen);
    hide_cursor(screen);
  }
  update_states();
}

// --- input

void Screens::key(SurfaceId /*surface*/, uint32_t code, bool down) {
  if (x_input != nullptr) x_input->key(code, down);
}

void Screens::button(SurfaceId /*surface*/, uint32_t code, bool down) {
  if (x_input != nullptr) x_input->button(code, down);
}

void Screens::wheel(SurfaceId /*surface*/, int32_t vertical, int32_t horizontal) {
  if (x_input != nullptr) x_input->wheel(vertical, horizontal);
}

// The tablet's range is the guest's whole desktop: the screens side by side.
void Screens::motion(SurfaceId surface, uint32_t x, uint32_t y) {
  if (x_input == nullptr) return;
  uint64_t width = 0;
  uint64_t height = 1;
  uint64_t left = 0;
  for (const Screen& screen : x_screens) {
    if (screen.surface == surface) left = width;
    width += screen.width();
    height = std::max<uint64_t>(height, screen.height());
  }
  const auto scaled = [](uint64_t at, uint64_t size) {
    if (size < 2) return uint32_t{0};
    return static_cast<uint32_t>(std::min(at, size - 1) * ScreenInput::kPointerMax / (size - 1));
  };
  x_input->motion(scaled(left + x, width), scaled(y, height));
}

// --- snapshots

void Screens::save(StateWriter& to) const {
  to.number(static_cast<uint32_t>(x_screens.size()));
  for (const Screen& screen : x_screens) {
    to.number(screen.wanted_width);
    to.number(screen.wanted_height);
    to.number(screen.resource);
    for (const uint32_t part :
         {screen.source.x, screen.source.y, screen.source.width, screen.source.height})
      to.number(part);
    to.number(static_cast<uint32_t>(screen.blob_offset));
    to.number(screen.content.stride);
    to.number(screen.content.format);
    to.number(screen.whole_width);
    to.number(screen.whole_height);
    to.number(screen.cursor);
    to.number(screen.hot_x);
    to.number(screen.hot_y);
  }
}

// What it shows, by the command that made it so.
void Screens::restore_content(uint32_t index, StateReader& from) {
  virtio_gpu_set_scanout_blob blob{};
  blob.scanout_id = index;
  blob.resource_id = from.number<uint32_t>();
  for (auto* part : {&blob.r.x, &blob.r.y, &blob.r.width, &blob.r.height})
    *part = from.number<uint32_t>();
  blob.offsets[0] = from.number<uint32_t>();
  blob.strides[0] = from.number<uint32_t>();
  blob.format = from.number<uint32_t>();
  blob.width = from.number<uint32_t>();
  blob.height = from.number<uint32_t>();
  virtio_gpu_update_cursor cursor{};
  cursor.hdr.type = VIRTIO_GPU_CMD_UPDATE_CURSOR;
  cursor.pos.scanout_id = index;
  cursor.resource_id = from.number<uint32_t>();
  cursor.hot_x = from.number<uint32_t>();
  cursor.hot_y = from.number<uint32_t>();
  if (!from.ok()) return;
  const Resource* const resource = x_resources.find(blob.resource_id);
  virtio_gpu_set_scanout plain{};
  plain.scanout_id = index;
  plain.resource_id = blob.resource_id;
  plain.r = blob.r;
  const uint32_t answer =
      resource != nullptr && resource->blob() ? set_scanout_blob(blob) : set_scanout(plain);
  if (answer != VIRTIO_GPU_RESP_OK_NODATA || !update_cursor(cursor))
    from.fail(fmt::format("screen {} can't show what it did", index));
}

void Screens::restore(StateReader& from) {
  if (from.number<uint32_t>() != x_screens.size()) from.fail("another number of screens");
  for (uint32_t i = 0; i < x_screens.size() && from.ok(); ++i) {
    const auto width = from.number<uint32_t>();
    const auto height = from.number<uint32_t>();
    if (!valid_size(width, height)) return from.fail("a screen can't have this size");
    x_screens[i].wanted_width = width;
    x_screens[i].wanted_height = height;
    restore_content(i, from);
  }
  update_states();
}

}  // namespace lethe
