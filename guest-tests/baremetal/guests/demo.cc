// The demo (configs/demo.toml): a screen with a picture, and windows in buffers that the host shows
// without a copy. One moves, a dialog comes and goes, a click changes a window's colour, Q or Esc
// ends it all. Every event is told on the serial console.
//
// Command line: ticks=N ends it after N ticks of 20 ms; still=1: nothing moves by itself.
#include <linux/input-event-codes.h>

#include "guests/picture.h"
#include "kernel/apic.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"
#include "kernel/traps.h"
#include "kernel/virtio/input.h"
#include "kernel/virtio/windows.h"

using namespace kernel;

namespace {

constexpr uint8_t kTimerVector = 0x40;
constexpr uint32_t kTickCount = 1'250'000;  // 20 ms of the APIC's timer: 16 ns each
constexpr uint32_t kSideMax = 512;          // of a window that somebody makes larger
constexpr uint32_t kSlotBytes = kSideMax * kSideMax * 4;
constexpr uint32_t kScreenId = 100;
constexpr uint32_t kNeverEnds = 0xffffffff;
constexpr uint16_t kSleepControl = 0x600;
constexpr uint8_t kSleepS5 = (5 << 2) | 0x20;

struct Window {
  uint32_t id;  // also its place in the shared memory region
  const char* name;
  const char* title;
  int32_t x;
  int32_t y;
  uint32_t flags;
  uint32_t parent;
  uint32_t width = picture::kWindowWidth;
  uint32_t height = picture::kWindowHeight;
  uint32_t colour = 0;
  bool there = false;
  WindowBuffer buffer = {};
  uint32_t buffer_id = 0;
};

constexpr uint32_t kNormal = lethe::window::kWindowVisible | lethe::window::kWindowResizable;
Window shown[] = {
    {1, "RIVER", "Lethe demo: river", 40, 40, kNormal, 0},
    {2, "BOAT", "Lethe demo: boat", 240, 80, kNormal, 0},
    {3, "OBOL", "Lethe demo: obol", 80, 70,
     lethe::window::kWindowVisible | lethe::window::kWindowDialog, 1},
};
Window& boat = shown[1];
Window& dialog = shown[2];

GpuDriver gpu;
Windows windows;
uint32_t next_buffer_id = 1000;
bool quit;

void draw(Window& w) { picture::window({w.buffer.pixels, w.width, w.height}, w.name, w.colour); }

void new_buffer(Window& w) {
  // A new number each time: the old one may still be in a frontend's hands.
  const uint32_t bytes = (w.width * w.height * 4 + kPageSize - 1) & ~uint32_t{kPageSize - 1};
  const uint64_t offset = kPageSize + uint64_t{w.id - 1} * kSlotBytes;
  w.buffer = windows.make_buffer(next_buffer_id++, offset, bytes);
  draw(w);
}

void open_window(Window& w) {
  new_buffer(w);
  windows.create(w.id, w.x, w.y, w.width, w.height, w.flags, w.parent);
  windows.title(w.id, w.title);
  windows.attach(w.id, w.buffer, w.width, w.height);
  CHECK_EQ(windows.commit(), kGpuOk);
  w.there = true;
  print("window %u opened\n", w.id);
}

void close_window(Window& w) {
  if (!w.there) return;
  windows.destroy(w.id);
  CHECK_EQ(windows.commit(), kGpuOk);
  windows.drop_buffer(w.buffer);
  w.there = false;
  print("window %u closed\n", w.id);
}

void place(Window& w) {
  windows.geometry(w.id, w.x, w.y, w.width, w.height, w.flags);
  CHECK_EQ(windows.commit(), kGpuOk);
}

void change_colour(Window& w, uint32_t x, uint32_t y) {
  w.colour = (w.colour + 1) % picture::kColoursCount;
  draw(w);
  windows.damage(w.id, 0, 0, w.width, w.height, w.colour);
  CHECK_EQ(windows.commit(), kGpuOk);
  print("click in window %u at %u,%u: colour %u\n", w.id, x, y, w.colour);
}

uint32_t within(uint32_t wanted, uint32_t least) {
  return wanted < least ? least : wanted > kSideMax ? kSideMax : wanted;
}

// The user wants it so; this guest agrees, within bounds.
void configure(Window& w, const lethe::window::Event& e) {
  const uint32_t width = within(e.c, 64);
  const uint32_t height = within(e.d, 48);
  w.x = static_cast<int32_t>(e.a);
  w.y = static_cast<int32_t>(e.b);
  const bool resized = width != w.width || height != w.height;
  w.width = width;
  w.height = height;
  if (resized) {
    const WindowBuffer old = w.buffer;
    // The old one must leave its place in the region first.
    windows.attach(w.id, {}, 0, 0);
    CHECK_EQ(windows.commit(), kGpuOk);
    windows.drop_buffer(old);
    new_buffer(w);
    windows.geometry(w.id, w.x, w.y, width, height, w.flags);
    windows.attach(w.id, w.buffer, width, height);
    CHECK_EQ(windows.commit(), kGpuOk);
  } else {
    place(w);
  }
  print("window %u is %ux%u at %d,%d\n", w.id, width, height, w.x, w.y);
}

void key(const char* where, uint32_t code, bool down) {
  print("key %u %s in %s\n", code, down ? "down" : "up", where);
  if (down && (code == KEY_Q || code == KEY_ESC)) quit = true;
}

Window* find(uint32_t id) {
  for (Window& w : shown) {
    if (w.id == id && w.there) return &w;
  }
  return nullptr;
}

void take(const lethe::window::Event& e) {
  static uint32_t pointer_x;
  static uint32_t pointer_y;
  if (e.type == lethe::window::kEventReleased) {
    print("buffer %u released\n", e.a);
    return;
  }
  Window* const w = find(e.window);
  if (w == nullptr) return;  // closed meanwhile
  switch (e.type) {
    case lethe::window::kEventKey:
      return key(w->name, e.a, e.b != 0);
    case lethe::window::kEventMotion:
      pointer_x = e.a;
      pointer_y = e.b;
      return;
    case lethe::window::kEventButton:
      if (e.b != 0) change_colour(*w, pointer_x, pointer_y);
      return;
    case lethe::window::kEventConfigure:
      return configure(*w, e);
    case lethe::window::kEventClose:
      return close_window(*w);
    default:
      return;
  }
}

void show_screen() {
  using namespace picture;
  constexpr uint32_t kBytes = kScreenWidth * kScreenHeight * 4;
  constexpr virtio_gpu_rect kWhole = {0, 0, kScreenWidth, kScreenHeight};
  auto* pixels = static_cast<uint32_t*>(alloc_pages(kBytes / kPageSize + 1));
  screen({pixels, kScreenWidth, kScreenHeight});
  CHECK_EQ(gpu.create_2d(kScreenId, VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM, kScreenWidth, kScreenHeight),
           kGpuOk);
  CHECK_EQ(gpu.attach(kScreenId, pixels, kBytes), kGpuOk);
  CHECK_EQ(gpu.transfer(kScreenId, kWhole, 0), kGpuOk);
  CHECK_EQ(gpu.set_scanout(0, kScreenId, kWhole), kGpuOk);
  CHECK_EQ(gpu.flush(kScreenId, kWhole), kGpuOk);
}

void animate(uint32_t tick) {
  if (boat.there && tick % 4 == 0) {
    // There and back, 200 pixels.
    const uint32_t step = tick % 400;
    boat.x = 240 + static_cast<int32_t>(step < 200 ? step : 400 - step);
    place(boat);
  }
  if (tick % 150 == 100) open_window(dialog);
  if (tick % 150 == 0) close_window(dialog);
}

void read_devices(InputDriver& keyboard, InputDriver& tablet) {
  virtio_input_event e = {};
  while (keyboard.next(e)) {
    if (e.type == EV_KEY) key("the screen", e.code, e.value != 0);
  }
  while (tablet.next(e)) {
    if (e.type == EV_KEY && e.value == 1) print("click on the screen, button %u\n", e.code);
  }
}

void on_tick(TrapFrame&) { lapic_eoi(); }

}  // namespace

void guest_main() {
  if (!gpu.open({.required = kGpuWindowFeatures})) {
    print("no GPU: the config needs [gui] enabled = true\n");
    return;
  }
  static InputDriver keyboard;
  static InputDriver tablet;
  CHECK(keyboard.open(0) && tablet.open(1));
  show_screen();
  windows.open(gpu);
  open_window(shown[0]);
  open_window(boat);
  windows.start_poll();
  print("demo: look with lethe attach; click into a window; Q or Esc ends it\n");
  lapic_init();
  set_trap_handler(kTimerVector, on_tick);
  lapic_timer_periodic(kTimerVector, kTickCount);
  const bool still = option_number("still", 0) != 0;
  const auto ticks = static_cast<uint32_t>(option_number("ticks", kNeverEnds));
  for (uint32_t tick = 1; tick <= ticks && !quit; ++tick) {
    interrupts_on_and_halt();
    interrupts_off();
    if (!still) animate(tick);
    read_devices(keyboard, tablet);
    lethe::window::Event e = {};
    while (!quit && windows.next(e)) take(e);
    if (windows.poll_done()) windows.start_poll();
    if (!shown[0].there && !boat.there) quit = true;
  }
  close_window(dialog);  // before its parent
  close_window(boat);
  close_window(shown[0]);
  print("demo: over\n");
  out8(kSleepControl, kSleepS5);
  wait_until([] { return false; });
  CHECK(false && "the machine is off");
}
