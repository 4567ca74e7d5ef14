// The agent's drawing: what is damaged goes into the buffers that the host shows.
#include <algorithm>

#include "guest-tests/linux/agent/agent.h"
#include "guest-tests/linux/agent/say.h"

namespace lethe::agent {
namespace {

constexpr uint32_t kFormat = 2;        // VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM (linux/virtio_gpu.h)
constexpr size_t kRectanglesMax = 32;  // copied one by one; more of them: the box around them

// The part of `rectangle` within `width` x `height`; empty: 0 x 0.
xcb_rectangle_t clip(const xcb_rectangle_t& rectangle, uint32_t width, uint32_t height) {
  const int32_t left = std::max<int32_t>(rectangle.x, 0);
  const int32_t top = std::max<int32_t>(rectangle.y, 0);
  const int32_t right = std::min<int32_t>(rectangle.x + rectangle.width, static_cast<int>(width));
  const int32_t bottom =
      std::min<int32_t>(rectangle.y + rectangle.height, static_cast<int>(height));
  if (right <= left || bottom <= top) return {};
  return {static_cast<int16_t>(left), static_cast<int16_t>(top),
          static_cast<uint16_t>(right - left), static_cast<uint16_t>(bottom - top)};
}

}  // namespace

bool Agent::wants_paint(const Window& window, Clock::time_point now) const {
  return window.number != 0 && window.dirty &&
         (!window.reading || now - window.drawn_at >= kReadPatience);
}

// Frames that wait to be read bound the wait.
int Agent::paint_timeout(int timeout_ms) const {
  const auto patience = static_cast<int>(kReadPatience.count());
  const bool waiting = std::any_of(x_windows.begin(), x_windows.end(), [](const auto& entry) {
    return entry.second.dirty && entry.second.reading;
  });
  if (!waiting) return timeout_ms;
  return timeout_ms < 0 ? patience : std::min(timeout_ms, patience);
}

// The image has the window's size. False: there is none to be had.
bool Agent::prepare(Window& window) {
  if (window.image && window.image->width() == window.sent.width &&
      window.image->height() == window.sent.height)
    return true;
  auto image =
      WindowImage::create(x_x, x_host, window.depth, window.sent.width, window.sent.height);
  window.whole = true;
  if (!image) {
    say("{}", image.error().text);
    window.dirty = false;  // until there is more damage
    return false;
  }
  if (window.image) x_retired.push_back(std::move(window.image));
  window.image = std::move(*image);
  window.reading = false;
  return true;
}

void Agent::present(Window& window, const xcb_rectangle_t& box, bool attach) {
  if (attach) {
    window::WindowAttach command{};
    command.window = window.number;
    command.resource_id = window.image->buffer().resource_id();
    command.stride = window.image->stride();
    command.format = kFormat;
    command.width = window.image->width();
    command.height = window.image->height();
    x_commands.add(window::kWindowAttach, command);
  }
  window::WindowDamage command{};
  command.window = window.number;
  command.x = static_cast<uint16_t>(box.x);
  command.y = static_cast<uint16_t>(box.y);
  command.width = box.width;
  command.height = box.height;
  command.serial = window.serial = x_next_serial++;
  x_commands.add(window::kWindowDamage, command);
  window.reading = true;
  window.drawn_at = Clock::now();
  ++x_counters.frames;
  if (window.image->direct()) ++x_counters.direct_frames;
}

// One round trip for all windows' damage, and one until the server has drawn.
void Agent::paint() {
  struct Job {
    Window* window;
    xcb_xfixes_fetch_region_cookie_t region;
    bool attach;
    xcb_rectangle_t box;
  };
  std::vector<Job> jobs;
  const auto now = Clock::now();
  for (auto& [id, window] : x_windows) {
    if (!wants_paint(window, now)) continue;
    const WindowImage* before = window.image.get();
    if (!prepare(window)) continue;
    xcb_damage_subtract(x_x.xcb(), window.damage, XCB_NONE, window.region);
    jobs.push_back({&window,
                    xcb_xfixes_fetch_region(x_x.xcb(), window.region),
                    window.image.get() != before,
                    {}});
  }
  if (jobs.empty()) return;
  bool direct = false;
  for (Job& job : jobs) {
    Window& window = *job.window;
    XReply<xcb_xfixes_fetch_region_reply_t> region(
        xcb_xfixes_fetch_region_reply(x_x.xcb(), job.region, nullptr));
    const uint32_t width = window.image->width();
    const uint32_t height = window.image->height();
    const xcb_rectangle_t all = {0, 0, static_cast<uint16_t>(width), static_cast<uint16_t>(height)};
    const bool whole = window.whole || !region;
    job.box = whole ? all : clip(region->extents, width, height);
    window.dirty = window.whole = false;
    if (job.box.width == 0) continue;
    direct = direct || window.image->direct();
    const auto count = whole ? 0 : xcb_xfixes_fetch_region_rectangles_length(region.get());
    if (whole || count > static_cast<int>(kRectanglesMax)) {
      window.image->copy(window.id, job.box, x_scratch);
      continue;
    }
    const xcb_rectangle_t* parts = xcb_xfixes_fetch_region_rectangles(region.get());
    for (int i = 0; i < count; ++i)
      if (const auto part = clip(parts[i], width, height); part.width != 0)
        window.image->copy(window.id, part, x_scratch);
  }
  if (direct) x_x.sync();
  for (const Job& job : jobs)
    if (job.box.width != 0) present(*job.window, job.box, job.attach);
}

}  // namespace lethe::agent
