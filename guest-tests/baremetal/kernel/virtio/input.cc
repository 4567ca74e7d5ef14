#include "kernel/virtio/input.h"

#include <linux/virtio_ids.h>

#include "kernel/check.h"
#include "kernel/memory.h"

namespace kernel {

bool InputDriver::open(unsigned index) {
  if (!device_.open(VIRTIO_ID_INPUT, index)) return false;
  device_.start(0);
  CHECK(device_.queue_count() >= 2);
  events_.open(device_, 0, 0, kNoVector, false);
  status_.open(device_, 1, 0, kNoVector, false);
  buffers_ = static_cast<virtio_input_event*>(alloc_pages(1));
  device_.driver_ok();
  fill();
  return true;
}

void InputDriver::restart() {
  device_.start(0);
  events_.reopen();
  status_.reopen();
  device_.driver_ok();
  fill();
}

void InputDriver::fill() {
  held_ = false;
  kept_count_ = 0;
  for (uint16_t i = 0; i < kBuffers && events_.room() > 0; ++i) give(i);
  events_.kick();
}

void InputDriver::give(uint16_t slot) {
  const Buffer b = writable(&buffers_[slot], sizeof(virtio_input_event));
  const uint16_t head = events_.add(&b, 1);
  slot_of_[head] = slot;
  events_.publish(head);
}

uint8_t InputDriver::select(uint8_t what, uint8_t sub) {
  mmio_write<uint8_t>(device_.config_address() + 1, sub);
  mmio_write<uint8_t>(device_.config_address(), what);
  return device_.config<uint8_t>(2);
}

bool InputDriver::has(uint8_t type, uint16_t code) {
  const uint8_t bytes = select(VIRTIO_INPUT_CFG_EV_BITS, type);
  return code / 8 < bytes && ((byte(code / 8) >> (code % 8)) & 1) != 0;
}

bool InputDriver::next(virtio_input_event& event) {
  Used used = {};
  if (!events_.pop(used)) return false;
  CHECK_EQ(used.length, sizeof(event));
  const uint16_t slot = slot_of_[used.head];
  event = buffers_[slot];
  if (held_) {
    kept_[kept_count_++] = slot;
  } else {
    give(slot);
    events_.kick();
  }
  return true;
}

void InputDriver::release() {
  held_ = false;
  for (uint16_t i = 0; i < kept_count_; ++i) give(kept_[i]);
  kept_count_ = 0;
  events_.kick();
}

}  // namespace kernel
