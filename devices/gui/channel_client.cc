#include "devices/gui/channel_client.h"

#include <sys/socket.h>

#include <cstring>

#include "base/assert.h"
#include "base/log.h"
#include "base/packet.h"

namespace lethe {
namespace {

// How soon to try again when a full socket can't be watched.
constexpr std::chrono::milliseconds kRetry{20};

}  // namespace

ChannelClient::ChannelClient(GuiCore& core, UniqueFd socket, unsigned holder)
    : x_core(core),
      x_socket(std::move(socket)),
      x_holder(holder),
      x_shown(gui::kSurfacesMax),
      x_surfaces_due(gui::kSurfacesMax),
      x_known(core.options().buffers_max),
      x_gone_due(core.options().buffers_max) {}

ChannelClient::~ChannelClient() = default;

Result<> ChannelClient::start() {
  LETHE_TRY_ASSIGN(x_readable,
                   x_core.loop().watch_readable(x_socket.get(), [this] { (void)read_message(); }));
  x_retry = x_core.loop().make_timer([this] { try_again(); });
  x_patience = x_core.loop().make_timer([this] {
    if (x_welcomed) LETHE_LOG_LIMITED(LogModule::kGui, "frontend {}: does not read", x_name);
    x_core.counters().slow_frontends.fetch_add(1, std::memory_order_relaxed);
    send_off(gui::ByeReason::kTooSlow);
  });
  x_patience->start(x_core.options().drain_patience);  // for its Hello
  return {};
}

void ChannelClient::begin_lag(Shown& shown) {
  if (shown.lags()) return;
  shown.lags_since = Clock::now();
  x_core.watch_patience();
}

// All of the surface has to be sent.
void ChannelClient::make_due(uint32_t slot) {
  Shown& shown = x_shown[slot];
  const SurfaceRecord& surface = x_core.surface_at(slot);
  shown.state_due = true;
  shown.cursor_due = surface.cursor.image.buffer.valid();
  if (surface.frame > 0) {
    begin_lag(shown);
    shown.content_due = true;
    shown.whole = true;
  }
  x_surfaces_due.add(slot);
}

void ChannelClient::surface_changed(uint32_t slot) {
  if (!x_welcomed) return;
  x_shown[slot].state_due = true;
  x_surfaces_due.add(slot);
  pump();
}

void ChannelClient::content_changed(uint32_t slot, const Rect& damage, bool whole) {
  if (!x_welcomed) return;
  Shown& shown = x_shown[slot];
  begin_lag(shown);
  shown.content_due = true;
  shown.whole = shown.whole || whole;
  shown.damage = united(shown.damage, damage);
  x_surfaces_due.add(slot);
  pump();
}

void ChannelClient::cursor_changed(uint32_t slot) {
  if (!x_welcomed) return;
  x_shown[slot].cursor_due = true;
  x_surfaces_due.add(slot);
  pump();
}

void ChannelClient::buffer_gone(BufferId id) {
  if (x_known[id.slot] != id.generation) return;
  x_gone_due.add(id.slot);
  pump();
}

void ChannelClient::pump() {
  if (!x_welcomed) return;
  while (const auto slot = x_gone_due.next()) {
    auto message = make_message<gui::BufferGone>(gui::Type::kBufferGone);
    message.buffer = *slot;
    message.generation = x_known[*slot];
    const auto state = x_core.ledger().state({*slot, x_known[*slot]});
    message.revoked = state == ShareLedger::State::kOrphan ? 0 : 1;
    if (!send(message)) return;
    x_known[*slot] = 0;
    x_gone_due.remove(*slot);
  }
  for (auto slot = x_surfaces_due.next(); slot; slot = x_surfaces_due.next(*slot + 1)) {
    if (!pump_surface(*slot)) return;
    x_surfaces_due.remove(*slot);
  }
}

// Sends what is due of it; false if the socket does not take it all. What waits for DoneReading is
// not due before.
bool ChannelClient::pump_surface(uint32_t slot) {
  Shown& shown = x_shown[slot];
  const SurfaceRecord& surface = x_core.surface_at(slot);
  if (shown.known != 0 && shown.known != surface.id) {
    auto message = make_message<gui::SurfaceGone>(gui::Type::kSurfaceGone);
    message.surface = shown.known;
    if (!send(message)) return false;
    shown = {};
    if (surface.id != 0) make_due(slot);
  }
  if (surface.id == 0) {
    shown = {};
    return true;
  }
  if (shown.state_due) {
    if (!send(surface_message(surface.id, surface.state))) return false;
    shown.known = surface.id;
    shown.state_due = false;
  }
  if (shown.cursor_due && !pump_cursor(slot)) return false;
  return !shown.content_due || shown.waiting || pump_content(slot);
}

bool ChannelClient::pump_cursor(uint32_t slot) {
  const SurfaceRecord& surface = x_core.surface_at(slot);
  if (!offer(surface.cursor.image.buffer)) return false;
  if (!send(cursor_message(surface.id, surface.cursor))) return false;
  x_shown[slot].cursor_due = false;
  return true;
}

bool ChannelClient::pump_content(uint32_t slot) {
  Shown& shown = x_shown[slot];
  const SurfaceRecord& surface = x_core.surface_at(slot);
  const SurfaceContent& content = surface.content;
  if (!offer(content.buffer)) return false;
  const Rect damage = shown.whole ? Rect{0, 0, content.width, content.height} : shown.damage;
  if (!send(frame_message(surface.id, surface.frame, content, damage))) return false;
  x_core.counters().frames.fetch_add(1, std::memory_order_relaxed);
  shown.content_due = false;
  shown.whole = false;
  shown.damage = {};
  shown.sent = surface.frame;
  shown.sent_buffer = content.buffer;
  shown.waiting = true;
  return true;
}

// Before a message that names a buffer: the frontend gets the descriptor, if it does not know it.
bool ChannelClient::offer(BufferId id) {
  if (!id.valid() || x_known[id.slot] == id.generation) return true;
  LETHE_ASSERT(x_known[id.slot] == 0);  // what is gone has been told before
  const SharedBuffer* const memory = x_core.buffer(id);
  LETHE_ASSERT(memory != nullptr);
  auto message = make_message<gui::Buffer>(gui::Type::kBuffer);
  message.buffer = id.slot;
  message.generation = id.generation;
  message.bytes = memory->bytes();
  // Held before the frontend can have it: it is never uncounted.
  (void)x_core.ledger().hold(id, x_holder);
  if (!send(message, memory->read_only_fd())) {
    (void)x_core.ledger().unmapped(id, x_holder);
    return false;
  }
  x_known[id.slot] = id.generation;
  return true;
}

bool ChannelClient::send_bytes(std::span<const uint8_t> packet, int descriptor) {
  if (x_ended || x_full) return false;
  const auto sent = send_packet(packet, descriptor);
  if (sent == Sent::kYes) stop_waiting();
  if (sent == Sent::kFull || sent == Sent::kLater) wait_for_room(sent == Sent::kFull);
  if (sent == Sent::kFailed) hang_up();
  return sent == Sent::kYes;
}

ChannelClient::Sent ChannelClient::send_packet(std::span<const uint8_t> packet, int descriptor) {
  const std::span<const int> descriptors(&descriptor, descriptor >= 0 ? 1 : 0);
  if (lethe::send_packet(x_socket.get(), packet, descriptors, MSG_DONTWAIT) >= 0) return Sent::kYes;
  // ETOOMANYREFS: too many descriptors on their way, of all frontends (unix(7)).
  switch (errno) {
    case EAGAIN:
      return Sent::kFull;
    case ENOBUFS:
    case ENOMEM:
    case EINTR:
    case ETOOMANYREFS:
      return Sent::kLater;
    default:
      return Sent::kFailed;
  }
}

// However often it is tried again: patience ends if nothing gets through.
void ChannelClient::wait_for_room(bool watch_socket) {
  x_full = true;
  if (!x_waits) x_patience->start(x_core.options().drain_patience);
  x_waits = true;
  if (watch_socket) {
    auto watch = x_core.loop().watch_writable(x_socket.get(), [this] {
      x_writable.reset();
      try_again();
    });
    if (watch) {
      x_writable = std::move(*watch);
      return;
    }
  }
  x_retry->start(kRetry);
}

void ChannelClient::try_again() {
  x_full = false;
  pump();
  if (!x_full) stop_waiting();  // there may be nothing left to send
}

void ChannelClient::stop_waiting() {
  if (!x_waits) return;
  x_waits = false;
  x_patience->cancel();
}

void ChannelClient::send_off(gui::ByeReason reason) {
  if (x_ended) return;
  auto message = make_message<gui::Bye>(gui::Type::kBye);
  message.reason = static_cast<uint32_t>(reason);
  (void)send_packet(bytes_of(message), -1);
  hang_up();
}

void ChannelClient::hang_up() {
  if (x_ended) return;
  x_ended = true;
  x_readable.reset();
  x_writable.reset();
  x_retry->cancel();
  x_patience->cancel();
  x_core.schedule_settle();
}

uint64_t ChannelClient::done_frame(uint32_t slot) const {
  const Shown& shown = x_shown[slot];
  const bool waited_for = x_welcomed && !x_ended && shown.lags() && !shown.slow;
  return waited_for ? shown.done : x_core.surface_at(slot).frame;
}

std::optional<ChannelClient::Clock::time_point> ChannelClient::lose_patience(
    Clock::time_point since) {
  std::optional<Clock::time_point> next;
  if (x_ended) return next;
  for (uint32_t slot = 0; slot < x_shown.size(); ++slot) {
    Shown& shown = x_shown[slot];
    if (!shown.lags() || shown.slow) continue;
    if (shown.lags_since <= since) {
      shown.slow = true;
      x_core.check_done(slot);
    } else if (!next || shown.lags_since < *next) {
      next = shown.lags_since;
    }
  }
  return next;
}

}  // namespace lethe
