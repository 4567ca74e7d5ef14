#include "devices/virtio/gpu/event_ring.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>

namespace lethe {
namespace {

// SAFETY: the ring is 4-byte aligned memory that stays mapped; the guest only reads it, or spoils
// nothing but its own events.
void store_word(uint8_t* at, uint32_t value, std::memory_order order) {
  std::atomic_ref<uint32_t>(*reinterpret_cast<uint32_t*>(at)).store(value, order);
}

window::Event event(window::EventType type, uint32_t window, uint32_t a, uint32_t b = 0,
                    uint32_t c = 0, uint32_t d = 0) {
  return {.type = type, .window = window, .a = a, .b = b, .c = c, .d = d, .reserved = {}};
}

}  // namespace

bool EventRing::start(uint8_t* data, uint64_t bytes) {
  const uint32_t capacity = window::ring_capacity(bytes);
  if (capacity < kEventsMin) return false;
  x_data = data;
  x_capacity = capacity;
  x_head = x_tail = x_lost = 0;
  const window::EventRingHeader header{};
  std::memcpy(x_data, &header, sizeof header);
  return true;
}

void EventRing::stop() {
  x_data = nullptr;
  x_capacity = 0;
  x_head = x_tail = 0;
  x_waiting.clear();
  x_released.clear();
}

bool EventRing::write(const window::Event& event) {
  if (used() >= x_capacity) return false;
  uint8_t* const at = x_data + sizeof(window::EventRingHeader) +
                      uint64_t{x_head % x_capacity} * sizeof(window::Event);
  std::memcpy(at, &event, sizeof event);
  ++x_head;
  // SAFETY: release: who sees the head sees the event.
  store_word(x_data + offsetof(window::EventRingHeader, head), x_head, std::memory_order_release);
  return true;
}

void EventRing::lose() {
  ++x_lost;
  store_word(x_data + offsetof(window::EventRingHeader, lost), x_lost, std::memory_order_relaxed);
}

void EventRing::push(const window::Event& event) {
  if (!active()) return;
  write_waiting();  // so that a click finds the pointer where it was
  if (!write(event)) lose();
}

EventRing::Waiting& EventRing::waiting(uint32_t window) {
  const auto found = std::ranges::find(x_waiting, window, &Waiting::window);
  if (found != x_waiting.end()) return *found;
  x_waiting.push_back({.window = window});
  return x_waiting.back();
}

void EventRing::motion(uint32_t window, uint32_t x, uint32_t y) {
  if (!active()) return;
  const auto moved = event(window::kEventMotion, window, x, y);
  if (roomy() && write(moved)) return;
  Waiting& entry = waiting(window);
  entry.motion = moved;
  entry.has_motion = true;
}

void EventRing::configure(uint32_t window, int32_t x, int32_t y, uint32_t width, uint32_t height) {
  if (!active()) return;
  const auto wanted = event(window::kEventConfigure, window, static_cast<uint32_t>(x),
                            static_cast<uint32_t>(y), width, height);
  if (roomy() && write(wanted)) return;
  Waiting& entry = waiting(window);
  entry.configure = wanted;
  entry.has_configure = true;
}

void EventRing::done(uint32_t window, uint32_t serial) {
  if (!active()) return;
  const auto read = event(window::kEventDone, window, serial);
  if (roomy() && write(read)) return;
  Waiting& entry = waiting(window);
  entry.done = read;
  entry.has_done = true;
}

void EventRing::released(uint32_t resource) {
  if (!active()) return;
  if (roomy() && write(event(window::kEventReleased, 0, resource))) return;
  if (x_released.size() < kReleasedMax)
    x_released.push_back(resource);
  else
    lose();
}

void EventRing::forget_window(uint32_t window) {
  std::erase_if(x_waiting, [&](const Waiting& entry) { return entry.window == window; });
}

void EventRing::write_waiting() {
  const auto take = [this](bool& has, const window::Event& event) {
    if (has && write(event)) has = false;
    return !has;
  };
  size_t written = 0;
  for (Waiting& entry : x_waiting) {
    if (!take(entry.has_configure, entry.configure) || !take(entry.has_motion, entry.motion) ||
        !take(entry.has_done, entry.done))
      break;
    ++written;
  }
  x_waiting.erase(x_waiting.begin(), x_waiting.begin() + static_cast<ptrdiff_t>(written));
  while (!x_released.empty() && write(event(window::kEventReleased, 0, x_released.front())))
    x_released.pop_front();
}

bool EventRing::set_tail(uint32_t tail) {
  if (!active() || tail - x_tail > x_head - x_tail) return false;
  x_tail = tail;
  write_waiting();
  return true;
}

namespace {

void save_event(const window::Event& event, StateWriter& to) {
  for (const uint32_t word : {event.type, event.window, event.a, event.b, event.c, event.d})
    to.number(word);
}

window::Event restore_event(StateReader& from) {
  window::Event event{};
  for (uint32_t* word : {&event.type, &event.window, &event.a, &event.b, &event.c, &event.d})
    *word = from.number<uint32_t>();
  return event;
}

}  // namespace

void EventRing::save(StateWriter& to) const {
  to.number(x_head);
  to.number(x_tail);
  to.number(x_lost);
  to.number(static_cast<uint32_t>(x_waiting.size()));
  for (const Waiting& entry : x_waiting) {
    to.number(entry.window);
    to.boolean(entry.has_motion);
    to.boolean(entry.has_configure);
    to.boolean(entry.has_done);
    save_event(entry.motion, to);
    save_event(entry.configure, to);
    save_event(entry.done, to);
  }
  to.number(static_cast<uint32_t>(x_released.size()));
  for (const uint32_t resource : x_released) to.number(resource);
}

void EventRing::restore(StateReader& from) {
  x_head = from.number<uint32_t>();
  x_tail = from.number<uint32_t>();
  x_lost = from.number<uint32_t>();
  if (used() > x_capacity) from.fail("an event ring with more events than it holds");
  const auto waiting_count = from.number<uint32_t>();
  if (waiting_count > window::kWindowsMax) from.fail("more windows than there can be");
  for (uint32_t i = 0; i < waiting_count && from.ok(); ++i) {
    Waiting& entry = waiting(from.number<uint32_t>());
    entry.has_motion = from.boolean();
    entry.has_configure = from.boolean();
    entry.has_done = from.boolean();
    entry.motion = restore_event(from);
    entry.configure = restore_event(from);
    entry.done = restore_event(from);
  }
  const auto released_count = from.number<uint32_t>();
  if (released_count > kReleasedMax) from.fail("more released resources than are kept");
  for (uint32_t i = 0; i < released_count && from.ok(); ++i)
    x_released.push_back(from.number<uint32_t>());
}

}  // namespace lethe
