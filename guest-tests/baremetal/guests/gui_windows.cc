// Windows by the window commands: devices/virtio/gpu/window_protocol.h.
#include "guests/gui.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

using namespace kernel;

namespace gui {
namespace {

constexpr uint64_t kBufferAt = kPageSize;  // behind the event ring
constexpr uint32_t kShown = window::kWindowVisible | window::kWindowResizable;

Windows& fresh_windows() {
  static Windows w;
  w.open(fresh_gpu());
  return w;
}

// A command of its own must be refused; the device goes on.
template <typename T>
void refuse(Windows& w, const T& command) {
  w.raw(&command, sizeof(command));
  CHECK(gpu_is_error(w.commit()));
}

}  // namespace

// The life of two windows, one the dialog of the other.
void windows() {
  Windows& w = fresh_windows();
  const WindowBuffer a = w.make_buffer(2, kBufferAt, kBytes);
  const WindowBuffer b = w.make_buffer(3, kBufferAt + kBytes, kBytes);
  a.pixels[0] = 0xff0000;
  w.create(1, 10, 20, kSide, kSide, kShown);
  w.title(1, "first");
  w.attach(1, a, kSide, kSide);
  w.create(2, -5, -6, 16, 16, window::kWindowVisible | window::kWindowDialog, 1);
  w.title(2, "second");
  w.attach(2, b, 16, 16);
  CHECK_EQ(w.commit(), kGpuOk);
  for (uint32_t serial = 1; serial <= 5; ++serial) {
    a.pixels[serial] = 0x00ff00;
    w.damage(1, serial, 0, 1, 1, serial);
    CHECK_EQ(w.commit(), kGpuOk);
    for (window::Event e = {}; e.window != 1 || e.a != serial;) e = w.wait_for(window::kEventDone);
  }
  w.geometry(1, 30, 40, kSide, kSide, kShown);
  w.geometry(2, 0, 0, 16, 16, window::kWindowDialog);  // hidden
  w.attach(2, {}, 0, 0);                               // shows nothing
  CHECK_EQ(w.commit(), kGpuOk);
  w.destroy(2);
  w.destroy(1);
  CHECK_EQ(w.commit(), kGpuOk);
  w.drop_buffer(a);
  w.drop_buffer(b);
}

// A buffer is told of as released when no frontend has it any more; its number may be used again.
void released() {
  Windows& w = fresh_windows();
  for (uint32_t round = 0; round < 4; ++round) {
    const WindowBuffer b = w.make_buffer(9, kBufferAt, kBytes);
    w.create(1, 0, 0, kSide, kSide, kShown);
    w.attach(1, b, kSide, kSide);
    CHECK_EQ(w.commit(), kGpuOk);
    // It goes away while the window shows it, or after the window.
    if (round % 2 == 0) w.destroy(1);
    CHECK_EQ(w.commit(), kGpuOk);
    w.drop_buffer(b);
    CHECK_EQ(w.wait_for(window::kEventReleased).a, 9);
    if (round % 2 != 0) w.destroy(1);
    CHECK_EQ(w.commit(), kGpuOk);
  }
}

// A poll waits for an event; a second one ends the first; the context's end ends it too.
void polls() {
  Windows& w = fresh_windows();
  GpuDriver& g = w.gpu();
  window::Event event = {};
  while (w.next(event)) {
  }
  w.start_poll();
  CHECK(!wait_until([&] { return w.poll_done(); }, 20));       // there is nothing yet
  const WindowBuffer b = w.make_buffer(2, kBufferAt, kBytes);  // other commands are not held up
  CHECK(w.polling());
  w.drop_buffer(b);
  CHECK_SOON(w.poll_done());
  CHECK(w.next(event));
  CHECK_EQ(event.type, window::kEventReleased);
  CHECK(!w.next(event));
  // With events unread a poll completes at once. Then two wait, and the second ends the first.
  w.start_poll();
  window::Poll other = {{window::kPoll, sizeof(window::Poll)}, 1, 0};
  const unsigned second =
      g.submit_fenced(Windows::kContext, &other, sizeof(other), window::kEventRing, 77);
  CHECK_SOON(w.poll_done());
  CHECK(!g.answered(second));
  CHECK_EQ(g.context_destroy(Windows::kContext), kGpuOk);
  virtio_gpu_ctrl_hdr header = {};
  g.collect(second, &header);
  CHECK_EQ(header.fence_id, 77);
}

void window_errors() {
  using namespace window;
  Windows& w = fresh_windows();
  const WindowBuffer b = w.make_buffer(2, kBufferAt, kBytes);
  w.create(1, 0, 0, kSide, kSide, kShown);
  w.attach(1, b, kSide, kSide);
  CHECK_EQ(w.commit(), kGpuOk);
  const WindowCreate create = {
      {kWindowCreate, sizeof(WindowCreate)}, 5, 0, kWindowVisible, 0, 0, 8, 8, 0};
  auto changed = [](auto command, auto change) {
    change(command);
    return command;
  };
  refuse(w, changed(create, [](auto& c) { c.window = 1; }));  // taken
  refuse(w, changed(create, [](auto& c) { c.window = 0; }));
  refuse(w, changed(create, [](auto& c) { c.width = 0; }));
  refuse(w, changed(create, [](auto& c) { c.height = window::kSidePixelsMax + 1; }));
  refuse(w, changed(create, [](auto& c) { c.flags = 0x10; }));
  refuse(w, changed(create, [](auto& c) { c.parent = 4; }));  // no such window
  refuse(w, changed(create, [](auto& c) { c.header.bytes -= 4; }));
  refuse(w, changed(create, [](auto& c) { c.header.bytes = 0; }));
  refuse(w, changed(create, [](auto& c) { c.header.bytes = 0xfffffffc; }));
  refuse(w, changed(create, [](auto& c) { c.header.command = 99; }));
  const WindowAttach attach = {{kWindowAttach, sizeof(WindowAttach)}, 1,     2,    0, kSide * 4,
                               VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM,      kSide, kSide};
  refuse(w, changed(attach, [](auto& c) { c.resource_id = 77; }));
  refuse(w, changed(attach, [](auto& c) { c.stride = kSide * 4 - 4; }));
  refuse(w, changed(attach, [](auto& c) { c.stride = 0xfffffffc; }));
  refuse(w, changed(attach, [](auto& c) { c.offset = 4; }));
  refuse(w, changed(attach, [](auto& c) { c.offset = ~uint64_t{3}; }));
  refuse(w, changed(attach, [](auto& c) { c.height = 0x40000000; }));
  refuse(w, changed(attach, [](auto& c) { c.format = 0; }));
  refuse(w, changed(attach, [](auto& c) { c.window = 6; }));
  w.damage(6, 0, 0, 1, 1, 0);
  CHECK(gpu_is_error(w.commit()));
  w.destroy(6);
  CHECK(gpu_is_error(w.commit()));
  // The commands before the bad one stay done, those behind it are not looked at.
  w.create(7, 0, 0, 8, 8, kShown);
  w.destroy(6);
  w.create(8, 0, 0, 8, 8, kShown);
  CHECK(gpu_is_error(w.commit()));
  w.destroy(7);
  CHECK_EQ(w.commit(), kGpuOk);
  w.destroy(8);
  CHECK(gpu_is_error(w.commit()));
  w.damage(1, 0, 0, kSide, kSide, 3);
  CHECK_EQ(w.commit(), kGpuOk);
  CHECK_EQ(w.wait_for(kEventDone).a, 3);
}

// As many windows as a context may have, and no more.
void many_windows() {
  Windows& w = fresh_windows();
  for (uint32_t id = 1; id <= window::kWindowsMax; ++id) {
    w.create(id, 0, 0, 8, 8, kShown);
    if (id % 64 == 0) CHECK_EQ(w.commit(), kGpuOk);
  }
  w.create(window::kWindowsMax + 1, 0, 0, 8, 8, kShown);
  CHECK(gpu_is_error(w.commit()));
  for (uint32_t id = 1; id <= window::kWindowsMax; ++id) {
    w.destroy(id);
    if (id % 64 == 0) CHECK_EQ(w.commit(), kGpuOk);
  }
  w.create(1, 0, 0, 8, 8, kShown);
  w.destroy(1);
  CHECK_EQ(w.commit(), kGpuOk);
}

// 100,000 windows and some thousands of buffers come and go; afterwards all works. What it costs
// the host is for the host to weigh: wait=1 stops for it before and after.
void churn() {
  Windows& w = fresh_windows();
  const bool stops = option_number("wait", 0) != 0;
  print("stage before\n");
  if (stops) wait_for_byte();
  // One batch of commands, sent again and again.
  constexpr uint32_t kPairs = 1000;
  constexpr uint32_t kBatchBytes =
      kPairs * (sizeof(window::WindowCreate) + sizeof(window::WindowDestroy));
  static_assert(kBatchBytes <= window::kCommandBytesMax);
  auto* batch = static_cast<uint8_t*>(alloc_pages(kBatchBytes / kPageSize + 1));
  size_t used = 0;
  for (uint32_t i = 0; i < kPairs; ++i) {
    const window::WindowCreate create = {
        {window::kWindowCreate, sizeof(create)}, i + 1, 0, kShown, 0, 0, 8, 8, 0};
    const window::WindowDestroy destroy = {{window::kWindowDestroy, sizeof(destroy)}, i + 1, 0};
    memcpy(batch + used, &create, sizeof(create));
    memcpy(batch + used + sizeof(create), &destroy, sizeof(destroy));
    used += sizeof(create) + sizeof(destroy);
  }
  for (unsigned i = 0; i < 100; ++i) {
    CHECK_EQ(w.gpu().submit(Windows::kContext, batch, used), kGpuOk);
  }
  const auto buffers = static_cast<unsigned>(option_number("buffers", 2000));
  w.create(1, 0, 0, kSide, kSide, kShown);
  CHECK_EQ(w.commit(), kGpuOk);
  for (unsigned i = 0; i < buffers; ++i) {
    const WindowBuffer b = w.make_buffer(2, kBufferAt, kPageSize);
    w.attach(1, b, kSide, kSide);
    CHECK_EQ(w.commit(), kGpuOk);
    w.drop_buffer(b);
    CHECK_EQ(w.wait_for(window::kEventReleased).a, 2);
  }
  print("stage after\n");
  if (stops) wait_for_byte();
  w.destroy(1);
  CHECK_EQ(w.commit(), kGpuOk);
}

}  // namespace gui
