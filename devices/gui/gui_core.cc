#include "devices/gui/gui_core.h"

#include <sys/resource.h>

#include <algorithm>

#include "base/assert.h"
#include "base/log.h"
#include "devices/gui/channel_client.h"
#include "devices/gui/channel_message.h"

namespace lethe {
namespace {

// So many buffers may wait for their release before the guest, which makes another, waits for it.
constexpr uint64_t kFreeingMax = 64;
// Memory that is given back in one go: 4 ms or so. A screen of 4K is 32 MiB.
constexpr uint64_t kReleaseBytes = 32 << 20;

// Descriptors of the process that are not for buffers, two each: disks, interrupts, frontends.
constexpr uint64_t kDescriptorsKept = 256;
constexpr uint32_t kBuffersMin = 16;

// A guest that makes buffers must not take the descriptors that the rest of the VM needs.
GuiOptions within_descriptors(GuiOptions options) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return options;
  const uint64_t room = limit.rlim_cur > kDescriptorsKept ? limit.rlim_cur - kDescriptorsKept : 0;
  const auto buffers = static_cast<uint32_t>(std::min<uint64_t>(room / 2, options.buffers_max));
  options.buffers_max = std::max(buffers, std::min(options.buffers_max, kBuffersMin));
  return options;
}

uint64_t now_of(const std::atomic<uint64_t>& counter) {
  return counter.load(std::memory_order_relaxed);
}

// The end of a buffer's memory, a step at a time: whatever frontends said, who still maps it keeps
// none of it.
bool give_back(BufferRecord& record) {
  record.left -= std::min(record.left, kReleaseBytes);
  return record.memory.revoke(record.left);
}

}  // namespace

GuiCore::GuiCore(EventLoop& loop, const GuiOptions& options)
    : x_loop(loop),
      x_options(within_descriptors(options)),
      x_ledger(x_options.buffers_max, options.ledger, *this),
      x_surfaces(gui::kSurfacesMax),
      x_buffers(x_options.buffers_max),
      x_done_checks(gui::kSurfacesMax),
      x_accept_timer(loop.make_timer([this] { watch_listener(); })),
      x_limits_timer(loop.make_timer([this] {
        x_limits_due = ShareLedger::Clock::time_point::max();
        enforce_limits();
      })),
      x_patience_timer(loop.make_timer([this] { check_patience(); })) {
  LETHE_ASSERT(options.buffers_max <= gui::kBuffersMax);
  LETHE_ASSERT(options.frontends_max <= ShareLedger::kHoldersMax);
  for (uint32_t slot = gui::kSurfacesMax; slot > 0; --slot) x_surfaces_free.push_back(slot - 1);
}

GuiCore::~GuiCore() { LETHE_ASSERT(x_closed); }

void GuiCore::close() {
  LETHE_ASSERT(x_surfaces_free.size() == gui::kSurfacesMax);
  x_closed = true;
  x_accept_watch.reset();
  for (Holder& holder : x_holders) {
    if (holder.client) holder.client->send_off(gui::ByeReason::kVmEnded);
    holder = {};
  }
  x_accept_timer.reset();
  x_limits_timer.reset();
  x_patience_timer.reset();
}

template <typename Call>
void GuiCore::for_clients(Call&& call) {
  for (Holder& holder : x_holders)
    if (holder.client && !holder.client->ended()) call(*holder.client);
}

// --- Buffers ---

bool GuiCore::room_for(uint64_t bytes) const {
  const LedgerCounters& c = x_ledger.counters();
  const uint64_t buffers = now_of(c.live.buffers) + now_of(c.orphan.buffers);
  const uint64_t total = now_of(c.live.bytes) + now_of(c.orphan.bytes) + now_of(c.freeing.bytes);
  return buffers + now_of(c.freeing.buffers) < x_options.buffers_max &&
         total + bytes <= x_options.bytes_max;
}

// Gives back what is free, or the oldest orphan; false: there is neither.
bool GuiCore::make_room() {
  if (now_of(x_ledger.counters().freeing.buffers) == 0 && !x_ledger.revoke_oldest()) return false;
  (void)x_ledger.run_pass();
  return true;
}

Result<BufferId> GuiCore::create_buffer(uint64_t bytes, SurfaceListener& listener) {
  const LedgerCounters& c = x_ledger.counters();
  if (bytes == 0 || bytes > gui::kBufferBytesMax ||
      now_of(c.live.bytes) + bytes > x_options.bytes_max ||
      now_of(c.live.buffers) >= x_options.buffers_max)
    return host_error("no room for a buffer of {} bytes: the limit is {} buffers of {} bytes",
                      bytes, x_options.buffers_max, x_options.bytes_max);
  if (now_of(c.freeing.buffers) >= kFreeingMax) (void)x_ledger.run_pass();
  while (!room_for(bytes) && make_room()) continue;
  auto memory = SharedBuffer::create(bytes);
  while (!memory && make_room()) memory = SharedBuffer::create(bytes);
  if (!memory) return Unexpected(std::move(memory).error());
  const uint64_t bytes_left = memory->bytes();
  const auto id = x_ledger.add(bytes_left);
  if (!id) return host_error("no room for a buffer: {} are in use", x_options.buffers_max);
  x_buffers[id->slot] = {.memory = std::move(*memory),
                         .generation = id->generation,
                         .listener = &listener,
                         .left = bytes_left};
  return *id;
}

BufferRecord* GuiCore::live_buffer(BufferId id) {
  return x_ledger.state(id) == ShareLedger::State::kLive ? &x_buffers[id.slot] : nullptr;
}

const SharedBuffer* GuiCore::buffer(BufferId id) const {
  return x_ledger.state(id) == ShareLedger::State::kLive ? &x_buffers[id.slot].memory : nullptr;
}

void GuiCore::release_buffer(BufferId id) {
  const BufferRecord* const record = live_buffer(id);
  if (record == nullptr) return;
  if (record->shown > 0) hide_buffer(id);
  (void)x_ledger.guest_gone(id, ShareLedger::Clock::now());
  for_clients([&](ChannelClient& client) { client.buffer_gone(id); });
  enforce_limits();
  schedule_pass();
}

// A buffer goes that is still shown somewhere.
void GuiCore::hide_buffer(BufferId id) {
  for (const SurfaceRecord& surface : x_surfaces) {
    if (surface.id == 0) continue;
    if (surface.content.buffer == id) present(surface.id, {}, {});
    if (surface.cursor.image.buffer == id) set_cursor(surface.id, {});
  }
}

ShareLedger::Owner::Release GuiCore::release(BufferId id, uint64_t bytes, bool revoked) {
  BufferRecord& record = x_buffers[id.slot];
  const bool given = record.left == 0 || give_back(record);
  if (given && record.left > 0) return Release::kMore;
  log_debug(LogModule::kGui, "buffer {}.{}: {} bytes {}", id.slot, id.generation, bytes,
            !given    ? "leaked"
            : revoked ? "revoked"
                      : "freed");
  if (record.listener != nullptr) x_released.push_back({record.listener, id});
  record = {};
  schedule_settle();
  return given ? Release::kDone : Release::kRefused;
}

bool GuiCore::revoke(BufferId id, uint64_t bytes, uint32_t holders) {
  log_debug(LogModule::kGui, "buffer {}.{}: revoking {} bytes from {:#x}", id.slot, id.generation,
            bytes, holders);
  return give_back(x_buffers[id.slot]);
}

void GuiCore::schedule_pass() {
  if (x_pass_posted || now_of(x_ledger.counters().freeing.buffers) == 0) return;
  x_pass_posted = true;
  x_loop.post([this] { run_pass(); });
}

void GuiCore::run_pass() {
  x_pass_posted = false;
  if (x_closed) return;
  (void)x_ledger.run_pass();
  schedule_pass();
}

void GuiCore::set_limits(const LedgerLimits& limits) {
  x_ledger.set_limits(limits);
  enforce_limits();
}

void GuiCore::enforce_limits() {
  const auto now = ShareLedger::Clock::now();
  const auto again = x_ledger.enforce_limits(now);
  schedule_pass();
  if (!again || *again >= x_limits_due) return;  // looked at soon enough
  x_limits_due = *again;
  x_limits_timer->start(std::min<std::chrono::nanoseconds>(*again - now, std::chrono::hours(1)));
}

// --- Surfaces ---

SurfaceRecord* GuiCore::find_surface(SurfaceId id) {
  SurfaceRecord& surface = x_surfaces[slot_of(id)];
  return id != 0 && surface.id == id ? &surface : nullptr;
}

SurfaceId GuiCore::surface_of(const SurfaceListener& listener, SurfaceId preferred) const {
  const SurfaceRecord& first = x_surfaces[slot_of(preferred)];
  if (preferred != 0 && first.id == preferred && first.listener == &listener) return preferred;
  for (const SurfaceRecord& surface : x_surfaces)
    if (surface.id != 0 && surface.listener == &listener) return surface.id;
  return 0;
}

Result<SurfaceId> GuiCore::add_surface(const SurfaceState& state, SurfaceListener& listener) {
  if (x_surfaces_free.empty())
    return host_error("no room for a surface: the limit is {}", gui::kSurfacesMax);
  const uint32_t slot = x_surfaces_free.back();
  x_surfaces_free.pop_back();
  const SurfaceId id = ++x_surfaces_made * gui::kSurfacesMax + slot;
  x_surfaces[slot].id = id;
  x_surfaces[slot].listener = &listener;
  x_surfaces[slot].state = state;
  for_clients([&](ChannelClient& client) { client.surface_changed(slot); });
  return id;
}

void GuiCore::update_surface(SurfaceId id, const SurfaceState& state) {
  SurfaceRecord* const surface = find_surface(id);
  if (surface == nullptr || surface->state == state) return;
  surface->state = state;
  for_clients([&](ChannelClient& client) { client.surface_changed(slot_of(id)); });
}

void GuiCore::set_content(SurfaceContent& content, const SurfaceContent& next) {
  BufferRecord* const record = live_buffer(next.buffer);
  if (record != nullptr) ++record->shown;
  if (BufferRecord* const old = live_buffer(content.buffer); old != nullptr) --old->shown;
  content = record != nullptr ? next : SurfaceContent{};
}

uint64_t GuiCore::present(SurfaceId id, const SurfaceContent& content, const Rect& damage) {
  SurfaceRecord* const surface = find_surface(id);
  if (surface == nullptr) return 0;
  const SurfaceContent before = surface->content;
  set_content(surface->content, content);
  const SurfaceContent& now = surface->content;
  const bool whole = before.buffer.valid() != now.buffer.valid() || before.format != now.format ||
                     before.width != now.width || before.height != now.height;
  const Rect shown = clipped(damage, now.width, now.height);
  const uint32_t slot = slot_of(id);
  ++surface->frame;
  for_clients([&](ChannelClient& client) { client.content_changed(slot, shown, whole); });
  check_done(slot);
  return surface->frame;
}

void GuiCore::set_cursor(SurfaceId id, const CursorContent& cursor) {
  SurfaceRecord* const surface = find_surface(id);
  if (surface == nullptr) return;
  set_content(surface->cursor.image, cursor.image);
  surface->cursor.hot_x = cursor.hot_x;
  surface->cursor.hot_y = cursor.hot_y;
  for_clients([&](ChannelClient& client) { client.cursor_changed(slot_of(id)); });
}

void GuiCore::remove_surface(SurfaceId id) {
  SurfaceRecord* const surface = find_surface(id);
  if (surface == nullptr) return;
  set_content(surface->content, {});
  set_content(surface->cursor.image, {});
  *surface = {};
  const uint32_t slot = slot_of(id);
  x_surfaces_free.push_back(slot);
  x_done_checks.remove(slot);
  for_clients([&](ChannelClient& client) { client.surface_changed(slot); });
  check_focus();
}

void GuiCore::set_focus_listener(std::function<void(bool)> listener) {
  x_focus_listener = std::move(listener);
  x_focused = false;
  check_focus();
}

void GuiCore::check_focus() {
  bool focused = false;
  for (const Holder& holder : x_holders)
    focused = focused || (holder.client && find_surface(holder.client->focused()) != nullptr);
  if (std::exchange(x_focused, focused) != focused && x_focus_listener) x_focus_listener(focused);
}

void GuiCore::forget_listener(SurfaceListener& listener) {
  std::erase_if(x_released, [&](const Released& r) { return r.listener == &listener; });
  // Those that have ended as well: settle() makes them let go of what they hold.
  for (const Holder& holder : x_holders)
    if (holder.client) holder.client->forget_listener(listener);
  for (const SurfaceRecord& surface : x_surfaces)
    if (surface.id != 0 && surface.listener == &listener) remove_surface(surface.id);
  for (uint32_t slot = 0; slot < x_buffers.size(); ++slot) {
    BufferRecord& record = x_buffers[slot];
    if (record.listener != &listener) continue;
    record.listener = nullptr;
    release_buffer({slot, record.generation});
  }
}

// --- What creators hear ---

void GuiCore::schedule_settle() {
  if (x_settle_posted) return;
  x_settle_posted = true;
  x_loop.post([this] { settle(); });
}

void GuiCore::check_done(uint32_t slot) {
  x_done_checks.add(slot);
  schedule_settle();
}

void GuiCore::settle() {
  x_settle_posted = false;
  if (x_closed) return;
  for (Holder& holder : x_holders)
    if (holder.client && holder.client->ended()) remove_client(holder);
  for (auto slot = x_done_checks.next(); slot; slot = x_done_checks.next(*slot + 1)) {
    x_done_checks.remove(*slot);
    settle_surface(*slot);
  }
  // A listener that is called may forget itself, or others.
  while (!x_released.empty()) {
    const Released released = x_released.back();
    x_released.pop_back();
    released.listener->released(released.id);
  }
}

void GuiCore::settle_surface(uint32_t slot) {
  SurfaceRecord& surface = x_surfaces[slot];
  if (surface.id == 0) return;
  uint64_t done = surface.frame;
  for_clients([&](ChannelClient& client) { done = std::min(done, client.done_frame(slot)); });
  if (done <= surface.done_told) return;
  surface.done_told = done;
  surface.listener->done_reading(surface.id, done);
}

void GuiCore::watch_patience() {
  if (x_patience_watched) return;
  x_patience_watched = true;
  x_patience_timer->start(x_options.read_patience);
}

void GuiCore::check_patience() {
  const auto now = ChannelClient::Clock::now();
  std::optional<ChannelClient::Clock::time_point> next;
  for_clients([&](ChannelClient& client) {
    const auto lags = client.lose_patience(now - x_options.read_patience);
    if (lags && (!next || *lags < *next)) next = lags;
  });
  x_patience_watched = next.has_value();
  if (next) x_patience_timer->start(*next + x_options.read_patience - now);
}

}  // namespace lethe
