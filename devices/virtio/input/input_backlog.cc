#include "devices/virtio/input/input_backlog.h"

#include <linux/input-event-codes.h>

#include "base/assert.h"

namespace lethe {
namespace {

// linux/input-event-codes.h, REL_WHEEL_HI_RES: parts of a notch.
constexpr int32_t kPartsOfANotch = 120;

}  // namespace

InputBacklog::InputBacklog() : x_frames(std::make_unique<std::array<Frame, kFramesMax>>()) {}

// Whether `frames` more fit with `down` keys down after them. Kept back: a motion and a release for
// each of these keys, and one for the motion aside.
bool InputBacklog::room(size_t frames, size_t down) const {
  return x_size + frames + 2 * down + 1 <= kFramesMax;
}

void InputBacklog::push(const Frame& frame) {
  LETHE_ASSERT(x_size < kFramesMax);
  (*x_frames)[(x_start + x_size) % kFramesMax] = frame;
  ++x_size;
}

void InputBacklog::settle() {
  if (!x_aside || !room(1, x_down_count)) return;
  push(*x_aside);
  x_aside.reset();
}

InputBacklog::Taken InputBacklog::edge(uint32_t code, bool down) {
  LETHE_ASSERT(code < kInputCodes);
  if (x_down[code] == down) return Taken::kSame;
  if (down) {
    settle();
    // What was aside came before: without room for that there is none for this.
    if (x_aside || !room(1, x_down_count + 1)) return Taken::kFull;
    ++x_down_count;
  } else {
    if (x_aside) push(*x_aside);  // the room that the press kept
    x_aside.reset();
    --x_down_count;
  }
  x_down[code] = down;
  push({.kind = Frame::Kind::kEdge, .down = down, .code = static_cast<uint16_t>(code)});
  return Taken::kNew;
}

InputBacklog::Taken InputBacklog::motion(uint32_t x, uint32_t y) {
  const Frame frame{
      .kind = Frame::Kind::kMotion, .x = static_cast<int32_t>(x), .y = static_cast<int32_t>(y)};
  if (!x_aside && x_size > 0) {
    Frame& last = (*x_frames)[(x_start + x_size - 1) % kFramesMax];
    if (last.kind == Frame::Kind::kMotion) {
      last = frame;
      return Taken::kMerged;
    }
  }
  const bool merged = x_aside.has_value();
  x_aside = frame;
  settle();
  return merged ? Taken::kMerged : Taken::kNew;
}

InputBacklog::Taken InputBacklog::wheel(int32_t vertical, int32_t horizontal) {
  settle();
  if (x_aside || !room(1, x_down_count)) return Taken::kFull;
  push({.kind = Frame::Kind::kWheel, .x = vertical, .y = horizontal});
  return Taken::kNew;
}

void InputBacklog::add_event(uint16_t type, uint16_t code, int32_t value) {
  x_events[x_count++] = {.type = type, .code = code, .value = static_cast<uint32_t>(value)};
}

void InputBacklog::open(const Frame& frame) {
  x_count = x_sent = 0;
  switch (frame.kind) {
    case Frame::Kind::kEdge:
      add_event(EV_KEY, frame.code, frame.down ? 1 : 0);
      break;
    case Frame::Kind::kMotion:
      add_event(EV_ABS, ABS_X, frame.x);
      add_event(EV_ABS, ABS_Y, frame.y);
      break;
    case Frame::Kind::kWheel:
      if (frame.x != 0) {
        add_event(EV_REL, REL_WHEEL, frame.x);
        add_event(EV_REL, REL_WHEEL_HI_RES, frame.x * kPartsOfANotch);
      }
      if (frame.y != 0) {
        add_event(EV_REL, REL_HWHEEL, frame.y);
        add_event(EV_REL, REL_HWHEEL_HI_RES, frame.y * kPartsOfANotch);
      }
      break;
  }
  add_event(EV_SYN, SYN_REPORT, 0);
}

virtio_input_event InputBacklog::take() {
  if (x_sent == x_count) {
    LETHE_ASSERT(x_size > 0);
    open((*x_frames)[x_start]);
    // Back to the front when empty: memory that no burst needed is never touched.
    x_start = x_size == 1 ? 0 : (x_start + 1) % kFramesMax;
    --x_size;
    settle();
  }
  return x_events[x_sent++];
}

void InputBacklog::clear() {
  x_start = x_size = x_count = x_sent = 0;
  x_aside.reset();
  x_down.reset();
  x_down_count = 0;
}

// The keys that are down for the driver, what it has still to hear, in order, and how far it is in
// the frame that has begun.
void InputBacklog::save(StateWriter& to) const {
  std::bitset<kInputCodes> down = x_down;
  for (size_t i = 0; i < x_size; ++i) {
    const Frame& frame = (*x_frames)[(x_start + i) % kFramesMax];
    // Each key's edges take turns: the first one says what was before.
    if (frame.kind == Frame::Kind::kEdge) down.flip(frame.code);
  }
  to.number(static_cast<uint16_t>(down.count()));
  for (uint16_t code = 0; code < kInputCodes; ++code)
    if (down[code]) to.number(code);
  to.number(static_cast<uint8_t>(x_count - x_sent));
  for (size_t i = x_sent; i < x_count; ++i) {
    to.number(static_cast<uint16_t>(x_events[i].type));
    to.number(static_cast<uint16_t>(x_events[i].code));
    to.number(static_cast<uint32_t>(x_events[i].value));
  }
  const auto save_frame = [&](const Frame& frame) {
    to.number(static_cast<uint8_t>(frame.kind));
    to.boolean(frame.down);
    to.number(frame.code);
    to.number(static_cast<uint32_t>(frame.x));
    to.number(static_cast<uint32_t>(frame.y));
  };
  to.number(static_cast<uint16_t>(x_size + (x_aside ? 1 : 0)));
  for (size_t i = 0; i < x_size; ++i) save_frame((*x_frames)[(x_start + i) % kFramesMax]);
  if (x_aside) save_frame(*x_aside);
}

void InputBacklog::restore(StateReader& from, const std::function<bool(uint32_t code)>& has) {
  const auto key = [&] {
    const auto code = from.number<uint16_t>();
    if (from.ok() && (code >= kInputCodes || !has(code))) from.fail("a key that is not there");
    return from.ok() ? code : uint16_t{0};
  };
  const auto down = from.number<uint16_t>();
  for (uint16_t i = 0; i < down && from.ok(); ++i) x_down.set(key());
  x_down_count = x_down.count();
  const auto events = from.number<uint8_t>();
  if (events > x_events.size()) from.fail("too many events of a frame");
  for (uint8_t i = 0; i < events && from.ok(); ++i) {
    const auto type = from.number<uint16_t>();
    const auto code = from.number<uint16_t>();
    add_event(type, code, static_cast<int32_t>(from.number<uint32_t>()));
  }
  // By the way they came, so that room is kept for releases.
  const auto frames = from.number<uint16_t>();
  for (uint16_t i = 0; i < frames && from.ok(); ++i) {
    const auto kind = from.number<uint8_t>();
    const bool pressed = from.boolean();
    const uint16_t code =
        kind == static_cast<uint8_t>(Frame::Kind::kEdge) ? key() : from.number<uint16_t>();
    const auto x = from.number<uint32_t>();
    const auto y = from.number<uint32_t>();
    if (!from.ok()) return;
    if (kind == static_cast<uint8_t>(Frame::Kind::kEdge))
      (void)edge(code, pressed);
    else if (kind == static_cast<uint8_t>(Frame::Kind::kMotion))
      (void)motion(x, y);
    else
      (void)wheel(static_cast<int32_t>(x), static_cast<int32_t>(y));
  }
}

void InputBacklog::release_all() {
  for (uint32_t code = 0; code < kInputCodes; ++code)
    if (x_down[code]) (void)edge(code, false);
}

}  // namespace lethe
