// What frontends say.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/log.h"
#include "devices/gui/channel_client.h"

namespace lethe {
namespace {

// Keys and buttons that one frontend may hold down.
constexpr size_t kHeldMax = 64;
// More than a socket holds.
constexpr int kLastMessagesMax = 4096;

}  // namespace

// Its last words count: they may be in the socket still.
void ChannelClient::exited() {
  for (int i = 0; i < kLastMessagesMax && !x_ended; ++i)
    if (!read_message()) break;
  hang_up();
}

// One a turn of the loop, which comes back for the next. False: there is none.
bool ChannelClient::read_message() {
  std::array<uint8_t, gui::kMessageBytesMax> bytes;
  iovec part{.iov_base = bytes.data(), .iov_len = bytes.size()};
  // No room for control data: descriptors that a frontend sends are closed by the kernel and never
  // enter this process (unix(7), MSG_CTRUNC tells).
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  const ssize_t size = ::recvmsg(x_socket.get(), &header, MSG_DONTWAIT);
  if (size < 0) {
    if (errno != EAGAIN && errno != EINTR) hang_up();
    return false;
  }
  if (size == 0) {
    hang_up();
  } else if ((header.msg_flags & MSG_CTRUNC) != 0) {
    refuse(gui::ByeReason::kBadMessage, "sent a descriptor");
  } else if ((header.msg_flags & MSG_TRUNC) != 0) {
    refuse(gui::ByeReason::kBadMessage, "sent too long a message");
  } else {
    handle({bytes.data(), static_cast<size_t>(size)});
  }
  return true;
}

void ChannelClient::handle(std::span<const uint8_t> packet) {
  const auto message = parse_message(packet);
  if (!message) return refuse(gui::ByeReason::kBadMessage, "sent a bad message");
  if (std::holds_alternative<gui::Hello>(*message) == x_welcomed)
    return refuse(gui::ByeReason::kBadMessage, "must say Hello once, and first");
  std::visit([this](const auto& m) { on(m); }, *message);
}

void ChannelClient::refuse(gui::ByeReason reason, const char* why) {
  x_core.counters().refused_messages.fetch_add(1, std::memory_order_relaxed);
  LETHE_LOG_LIMITED(LogModule::kGui, "frontend {}: {}", x_name, why);
  send_off(reason);
}

void ChannelClient::on(const gui::Hello& message) {
  copy_text(x_name, message.name);
  if (message.version != gui::kVersion)
    return refuse(gui::ByeReason::kWrongVersion, "speaks another version");
  x_view_only = (message.flags & gui::kHelloViewOnly) != 0;
  x_patience->cancel();
  auto welcome = make_message<gui::Welcome>(gui::Type::kWelcome);
  welcome.magic = gui::kMagic;
  welcome.version = gui::kVersion;
  copy_text(welcome.vm_name, x_core.options().vm_name);
  if (!send(welcome)) return hang_up();  // it is the first packet: there is room
  log_debug(LogModule::kGui, "frontend {}: connected", x_name);
  x_welcomed = true;
  for (uint32_t slot = 0; slot < gui::kSurfacesMax; ++slot)
    if (x_core.surface_at(slot).id != 0) make_due(slot);
  pump();
}

// The frame that `shown` waits for has been read.
void ChannelClient::read_done(uint32_t slot) {
  Shown& shown = x_shown[slot];
  shown.waiting = false;
  shown.slow = false;
  shown.done = shown.sent;
  if (shown.content_due) {
    shown.lags_since = Clock::now();
    x_core.watch_patience();
    x_surfaces_due.add(slot);
  }
  x_core.check_done(slot);
}

void ChannelClient::on(const gui::DoneReading& message) {
  if (!x_core.was_given(message.surface))
    return refuse(gui::ByeReason::kBadMessage, "names a surface that never was");
  const uint32_t slot = GuiCore::slot_of(message.surface);
  const Shown& shown = x_shown[slot];
  if (shown.known != message.surface) return;  // it is gone
  if (message.frame > shown.sent)
    return refuse(gui::ByeReason::kBadMessage, "has read a frame that it did not get");
  if (!shown.waiting || message.frame != shown.sent) return;
  read_done(slot);
  pump();
}

void ChannelClient::on(const gui::Unmapped& message) {
  if (message.buffer >= x_known.size())
    return refuse(gui::ByeReason::kBadMessage, "names a buffer that never was");
  const BufferId id{message.buffer, message.generation};
  if (x_known[id.slot] == id.generation) {  // of its own accord
    x_known[id.slot] = 0;
    x_gone_due.remove(id.slot);
  }
  if (!x_core.ledger().unmapped(id, x_holder)) return;
  x_core.schedule_pass();
  // What is not mapped is not read.
  for (uint32_t slot = 0; slot < x_shown.size(); ++slot)
    if (x_shown[slot].waiting && x_shown[slot].sent_buffer == id) read_done(slot);
  pump();
}

// The surface that an input message is for; null if it is gone, or the frontend may only look.
template <typename Message>
SurfaceRecord* ChannelClient::target(const Message& message) {
  if (x_view_only) {
    x_core.counters().refused_messages.fetch_add(1, std::memory_order_relaxed);
    return nullptr;
  }
  if (!x_core.was_given(message.surface)) {
    refuse(gui::ByeReason::kBadMessage, "names a surface that never was");
    return nullptr;
  }
  x_core.counters().input_events.fetch_add(1, std::memory_order_relaxed);
  return x_core.find_surface(message.surface);
}

void ChannelClient::on(const gui::Key& message) {
  (void)target(message);
  if (!x_view_only && !x_ended) press(message.surface, message.code, message.down != 0, false);
}

void ChannelClient::on(const gui::Button& message) {
  (void)target(message);
  if (!x_view_only && !x_ended) press(message.surface, message.code, message.down != 0, true);
}

// The guest sees each key go down once and up once, even if the surface goes in between.
void ChannelClient::press(SurfaceId surface, uint32_t code, bool down, bool button) {
  const auto held = std::find_if(x_held.begin(), x_held.end(), [&](const Held& h) {
    return h.code == code && h.button == button;
  });
  if (!down) {
    if (held == x_held.end()) return;
    const Held copy = *held;
    x_held.erase(held);
    return lift(copy, surface);
  }
  SurfaceRecord* const record = x_core.find_surface(surface);
  if (record == nullptr || held != x_held.end() || x_held.size() >= kHeldMax) return;
  SurfaceListener* const listener = record->listener;
  x_held.push_back({.code = code, .button = button, .surface = surface, .listener = listener});
  button ? listener->button(surface, code, true) : listener->key(surface, code, true);
}

void ChannelClient::lift(const Held& held, SurfaceId preferred) {
  const SurfaceId surface = x_core.surface_of(*held.listener, preferred);
  if (surface == 0) return;
  held.button ? held.listener->button(surface, held.code, false)
              : held.listener->key(surface, held.code, false);
}

void ChannelClient::let_go() {
  while (!x_held.empty()) {
    const Held held = x_held.back();
    x_held.pop_back();
    lift(held, held.surface);
  }
  const SurfaceRecord* const focused = x_core.find_surface(x_focus.surface);
  x_focus = {};
  if (focused != nullptr) focused->listener->focus(focused->id, false);
}

void ChannelClient::forget_listener(const SurfaceListener& listener) {
  std::erase_if(x_held, [&](const Held& held) { return held.listener == &listener; });
}

void ChannelClient::on(const gui::Motion& message) {
  SurfaceRecord* const surface = target(message);
  if (surface == nullptr || surface->state.width == 0 || surface->state.height == 0) return;
  const auto clamp = [](int32_t value, uint32_t side) {
    return std::min(static_cast<uint32_t>(std::max(value, 0)), side - 1);
  };
  surface->listener->motion(surface->id, clamp(message.x, surface->state.width),
                            clamp(message.y, surface->state.height));
}

void ChannelClient::on(const gui::Wheel& message) {
  SurfaceRecord* const surface = target(message);
  if (surface != nullptr)
    surface->listener->wheel(surface->id, message.vertical, message.horizontal);
}

void ChannelClient::on(const gui::Focus& message) {
  SurfaceRecord* const surface = target(message);
  if (surface == nullptr) return;
  if (message.focused != 0) {
    x_focus.surface = surface->id;
  } else if (x_focus.surface == surface->id) {
    x_focus = {};
  }
  x_core.check_focus();
  surface->listener->focus(surface->id, message.focused != 0);
}

void ChannelClient::on(const gui::Configure& message) {
  SurfaceRecord* const surface = target(message);
  if (surface != nullptr)
    surface->listener->configure(surface->id, message.x, message.y, message.width, message.height);
}

void ChannelClient::on(const gui::Close& message) {
  SurfaceRecord* const surface = target(message);
  if (surface != nullptr) surface->listener->close(surface->id);
}

}  // namespace lethe
