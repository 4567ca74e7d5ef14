// Keyboard and tablet: what they say they are, and what they send.
#include <linux/input-event-codes.h>

#include "guests/gui.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/virtio/input.h"

using namespace kernel;

namespace gui {
namespace {

constexpr uint32_t kPointerMax = 32767;

struct Devices {
  InputDriver keyboard;
  InputDriver tablet;
};

Devices& devices() {
  static Devices d;
  static bool opened;
  if (!opened) {
    CHECK(d.keyboard.open(0));
    CHECK(d.tablet.open(1));
    opened = true;
  }
  return d;
}

void check_axis(InputDriver& d, uint8_t axis) {
  CHECK_EQ(d.select(VIRTIO_INPUT_CFG_ABS_INFO, axis), sizeof(virtio_input_absinfo));
  CHECK_EQ(d.word(0), 0);
  CHECK_EQ(d.word(4), kPointerMax);
}

// Prints each event of one device until its frame ends (SYN_REPORT).
bool print_frame(InputDriver& d, const char* name) {
  virtio_input_event e = {};
  if (!d.next(e)) return false;
  bool more = true;
  while (more) {
    if (e.type == EV_SYN) {
      CHECK_EQ(e.code, SYN_REPORT);
      print("%s end\n", name);
      return true;
    }
    print("%s type %u code %u value %d\n", name, e.type, e.code, static_cast<int>(e.value));
    more = wait_until([&] { return d.next(e); });
  }
  CHECK(false && "a frame has an end");
}

}  // namespace

void input_config() {
  InputDriver& keyboard = devices().keyboard;
  InputDriver& tablet = devices().tablet;
  InputDriver* const both[] = {&keyboard, &tablet};
  for (InputDriver* d : both) {
    CHECK(d->select(VIRTIO_INPUT_CFG_ID_NAME, 0) > 0);
    CHECK_EQ(d->select(VIRTIO_INPUT_CFG_ID_DEVIDS, 0), sizeof(virtio_input_devids));
    // What it does not have is of size 0 (section 5.8.5.1).
    CHECK_EQ(d->select(0x77, 0), 0);
    CHECK_EQ(d->select(VIRTIO_INPUT_CFG_UNSET, 0), 0);
    CHECK_EQ(d->select(VIRTIO_INPUT_CFG_EV_BITS, 0xff), 0);
  }
  CHECK(keyboard.has(EV_KEY, KEY_A) && keyboard.has(EV_KEY, KEY_ESC));
  CHECK(keyboard.has(EV_KEY, KEY_LEFTMETA) && keyboard.has(EV_KEY, KEY_F12));
  CHECK(!keyboard.has(EV_ABS, ABS_X));
  CHECK(tablet.has(EV_KEY, BTN_LEFT) && tablet.has(EV_KEY, BTN_RIGHT));
  CHECK(tablet.has(EV_KEY, BTN_MIDDLE) && tablet.has(EV_REL, REL_WHEEL));
  CHECK(tablet.has(EV_ABS, ABS_X) && tablet.has(EV_ABS, ABS_Y));
  check_axis(tablet, ABS_X);
  check_axis(tablet, ABS_Y);
}

// LEDs: the device takes them (section 5.8.6.2).
void input_status() {
  static virtio_input_event led;
  led = {EV_LED, LED_CAPSL, 1};
  const Buffer b = readable(&led, sizeof(led));
  for (unsigned i = 0; i < 3; ++i) {
    CHECK_EQ(devices().keyboard.status().submit_and_wait(&b, 1), 0);
  }
  devices().keyboard.restart();
  CHECK_EQ(devices().keyboard.status().submit_and_wait(&b, 1), 0);
}

// Prints what comes, until the key Q.
void input_events() {
  Devices& d = devices();
  gpu();  // the screen that the pointer is on
  virtio_input_event e = {};
  print("waiting for input\n");
  bool quit = false;
  CHECK(wait_until(
      [&] {
        (void)print_frame(d.tablet, "pointer");
        while (!quit && d.keyboard.next(e)) {
          if (e.type == EV_KEY) print("key %u %u\n", e.code, e.value);
          quit = e.type == EV_KEY && e.code == KEY_Q && e.value == 0;
        }
        return quit;
      },
      kOutsideMs));
}

// Gives no buffers back until the host says so: the device has to keep what it can't deliver.
void input_held() {
  Devices& d = devices();
  gpu();
  virtio_input_event e = {};
  d.keyboard.hold();
  print("holding\n");
  wait_for_byte();
  d.keyboard.release();
  unsigned downs = 0;
  unsigned ups = 0;
  const auto expected = static_cast<unsigned>(option_number("keys", 100));
  (void)wait_until(
      [&] {
        while (d.keyboard.next(e)) {
          if (e.type != EV_KEY) continue;
          CHECK_EQ(e.value, downs == ups ? 1 : 0);  // in order
          ++(e.value == 1 ? downs : ups);
        }
        // The buffers that were used while holding come back as soon as they are read.
        d.keyboard.release();
        d.keyboard.hold();
        return ups == expected;
      },
      kOutsideMs);
  print("%u down, %u up\n", downs, ups);
  CHECK_EQ(downs, expected);
  CHECK_EQ(ups, expected);
}

}  // namespace gui
