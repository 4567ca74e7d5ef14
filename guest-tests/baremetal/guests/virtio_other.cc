// Entropy (virtio 1.2, section 5.4) and console (section 5.3).
#include <linux/virtio_ids.h>

#include "guests/virtio.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/print.h"
#include "kernel/virtio/interrupts.h"
#include "kernel/virtio/queue.h"

using namespace kernel;

namespace virtio {
namespace {

constexpr uint16_t kConsoleTransmit = 1;
constexpr uint32_t kRandomBytes = 64;

}  // namespace

void rng() {
  VirtioDevice device;
  CHECK(device.open(VIRTIO_ID_RNG));
  device.start(0);
  CHECK_EQ(device.queue_count(), 1);
  Virtqueue queue;
  queue.open(device, 0, 0, 0, false);
  count_interrupts(device, 1);
  device.driver_ok();
  static uint8_t bytes[2][kRandomBytes];
  for (unsigned i = 0; i < 2; ++i) {
    memset(bytes[i], 0, kRandomBytes);
    const Buffer b = writable(bytes[i], kRandomBytes);
    const uint32_t got = queue.submit_and_wait(&b, 1);
    CHECK(got > 0 && got <= kRandomBytes);
    for (uint32_t k = got; k < kRandomBytes; ++k) CHECK_EQ(bytes[i][k], 0);
    CHECK_SOON(interrupts_seen(0) == i + 1);
  }
  CHECK(memcmp(bytes[0], bytes[1], 16) != 0);
  // In two pieces.
  const Buffer pieces[] = {writable(bytes[0], 7), writable(bytes[1], 9)};
  const uint32_t got = queue.submit_and_wait(pieces, 2);
  CHECK(got > 0 && got <= 16);
}

void console() {
  VirtioDevice device;
  CHECK(device.open(VIRTIO_ID_CONSOLE));
  device.start(0);
  CHECK(device.queue_count() >= 2);
  Virtqueue receive;
  Virtqueue transmit;
  receive.open(device, 0, 0, kNoVector, false);
  transmit.open(device, kConsoleTransmit, 0, 0, false);
  count_interrupts(device, 1);
  device.driver_ok();
  static uint8_t input[64];
  const Buffer room = writable(input, sizeof(input));
  receive.publish(receive.add(&room, 1));
  receive.kick();
  static const char text[] = "hello from the virtio console\n";
  const Buffer whole = readable(text, sizeof(text) - 1);
  CHECK_EQ(transmit.submit_and_wait(&whole, 1), 0);  // the device wrote nothing
  CHECK_SOON(interrupts_seen(0) >= 1);
  static const char left[] = "in two ";
  static const char right[] = "descriptors\n";
  const Buffer pieces[] = {readable(left, sizeof(left) - 1), readable(right, sizeof(right) - 1)};
  CHECK_EQ(transmit.submit_and_wait(pieces, 2), 0);
  CHECK_SOON(interrupts_seen(0) >= 2);
}

// Has used the devices of configs/minimal.toml and rests: what bench/overhead weighs.
void idle() {
  rng();
  console();
  print("ready\n");
  halt_forever();
}

}  // namespace virtio
