// virtio-gpu frozen, and its state in another device on another gui: what frontends see, what the
// guest has and what it hears.
#include <random>

#include "base/test_util.h"
#include "devices/virtio/gpu/gpu_test_util.h"

namespace lethe {
namespace {

using Commands = FakeWindowCommands;

class GpuSnapshot : public GpuTest {
 protected:
  static constexpr uint32_t kContext = 3;
  static constexpr uint32_t kRing = 1;  // resource
  static constexpr uint64_t kBufferBytes = 32 * 32 * 4;

  // A new process' gui and device.
  struct Other {
    explicit Other(const GuestMemory& memory, uint64_t bytes_max = 1u << 30) {
      gui = std::make_unique<Gui>(GuiOptions{.vm_name = "test", .bytes_max = bytes_max});
      const auto listening = gui->listen(socket.take());
      EXPECT_TRUE(listening) << listening.error().text;
      device = GpuDevice::create(memory, *gui, small(), nullptr).value();
    }
    [[nodiscard]] FakeFrontend connect() { return FakeFrontend::connect(socket.path()); }
    FakeGuiSocket socket;
    std::unique_ptr<Gui> gui;
    std::unique_ptr<GpuDevice> device;
  };
  // The guest's life goes on there.
  void move_to(Other& other) {
    guest->transport().freeze();
    const auto state = guest->transport().save();
    const auto moved = guest->transport().move_to(*other.device, state);
    ASSERT_TRUE(moved) << moved.error().text;
    guest->transport().thaw();
  }
  // The other device is about to go.
  void leave() { guest->transport().leave(); }

  void open() {
    ASSERT_EQ(guest->context_create(kContext), kOk);
    buffer(kRing, 0, 4096);
    ASSERT_EQ(submit(Commands().ring(kRing)), kOk);
  }
  void buffer(uint32_t id, uint64_t offset, uint64_t bytes = kBufferBytes) {
    ASSERT_EQ(guest->create_blob(id, bytes, kContext), kOk);
    ASSERT_EQ(guest->context_attach(kContext, id), kOk);
    ASSERT_EQ(guest->map(id, offset), kMapped);
  }
  uint32_t submit(const Commands& commands) { return guest->submit(kContext, commands.bytes()); }
  static window::EventRingHeader header(const GpuDevice& of) {
    window::EventRingHeader h;
    std::memcpy(&h, of.shared_memory()->host, sizeof h);
    return h;
  }
  static window::Event event(const GpuDevice& of, uint32_t number) {
    window::Event event;
    std::memcpy(&event,
                of.shared_memory()->host + sizeof(window::EventRingHeader) +
                    uint64_t{number % window::ring_capacity(4096)} * sizeof event,
                sizeof event);
    return event;
  }
  // The number of the first event of this type from `from` on; waits for it.
  static std::optional<window::Event> wait_event(const GpuDevice& of, uint32_t type,
                                                 uint32_t from = 0) {
    std::optional<window::Event> found;
    (void)eventually([&] {
      for (uint32_t i = from; i != header(of).head; ++i)
        if (event(of, i).type == type) found = event(of, i);
      return found.has_value();
    });
    return found;
  }
  static SurfaceId find(FakeFrontend& frontend, const std::string& title) {
    for (int i = 0; i < 1000; ++i) {
      for (const auto& [id, surface] : frontend.surfaces)
        if (title == surface.title) return id;
      if (!frontend.receive()) break;
    }
    return 0;
  }
};

TEST_F(GpuSnapshot, a_screen_shows_the_same_picture_and_goes_on) {
  const GuestAddr at = guest->alloc(64 * 64 * 4);
  paint(at, 64, 64, 1000);
  ASSERT_EQ(guest->create_2d(5, 64, 64), kOk);
  ASSERT_EQ(guest->attach(5, at, 64 * 64 * 4), kOk);
  ASSERT_EQ(guest->transfer(5, {0, 0, 64, 64}, 0), kOk);
  ASSERT_EQ(guest->set_scanout(0, 5, {8, 4, 32, 40}), kOk);
  ASSERT_EQ(guest->flush(5, {0, 0, 64, 64}), kOk);
  ASSERT_EQ(guest->create_2d(6, 16, 16, VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM), kOk);
  ASSERT_EQ(guest->cursor(VIRTIO_GPU_CMD_UPDATE_CURSOR, 0, 6, 3, 4), 0U);
  paint(at, 64, 64, 9000);  // not transferred: nobody is to see it yet
  Other other(*memory);
  move_to(other);

  FakeFrontend frontend = other.connect();
  const auto frame = frame_of(frontend, 32);
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->height, 40U);
  for (uint32_t y = 0; y < 40; ++y)
    for (uint32_t x = 0; x < 32; ++x)
      ASSERT_EQ(pixel(frontend, *frame, x, y), 1000 + (y + 4) * 64 + x + 8) << x << " " << y;
  while (frontend.cursors.empty()) ASSERT_TRUE(frontend.receive());
  EXPECT_EQ(frontend.cursors.begin()->second.hot_x, 3U);
  EXPECT_EQ(frontend.cursors.begin()->second.hot_y, 4U);
  // The backing is the same guest memory.
  ASSERT_EQ(guest->transfer(5, {0, 0, 64, 64}, 0), kOk);
  ASSERT_EQ(guest->flush(5, {0, 0, 64, 64}), kOk);
  EXPECT_EQ(pixel(frontend, *frame, 0, 0), 9000U + 4 * 64 + 8);
  EXPECT_EQ(guest->create_2d(5, 8, 8), kNoResource) << "the id is taken";
  EXPECT_EQ(guest->unref(5), kOk);
  leave();
}

TEST_F(GpuSnapshot, windows_their_pixels_and_their_events_go_on) {
  open();
  buffer(2, 8192);
  ASSERT_EQ(submit(Commands()
                       .create(8, 32, 32, window::kWindowVisible | window::kWindowDialog)
                       .title(8, "dialog")
                       .create(7)
                       .title(7, "xterm")
                       .geometry(7, -5, 9, 32, 32, window::kWindowVisible)
                       .attach(7, 2)
                       .damage(7, 41)),
            kOk);
  window::WindowCreate place{{}, 8, 7, window::kWindowVisible, 1, 2, 32, 32, 0};
  ASSERT_EQ(submit(Commands().add(window::kWindowGeometry, place)), kOk);
  ASSERT_TRUE(wait_event(*device, window::kEventDone));
  const uint32_t head = header(*device).head;
  const uint32_t value = 0x123456;
  std::memcpy(device->shared_memory()->host + 8192 + 128, &value, sizeof value);
  const uint16_t poll = guest->start_poll(kContext, head, 99);
  Other other(*memory);
  move_to(other);

  uint32_t mapped = 0;
  std::memcpy(&mapped, other.device->shared_memory()->host + 8192 + 128, sizeof mapped);
  EXPECT_EQ(mapped, value) << "what the guest had mapped is mapped, with its content";
  EXPECT_EQ(header(*other.device).head, head);
  FakeFrontend frontend = other.connect();
  const SurfaceId id = find(frontend, "xterm");
  const SurfaceId dialog = find(frontend, "dialog");
  ASSERT_NE(id, 0U);
  ASSERT_NE(dialog, 0U);
  EXPECT_EQ(frontend.surfaces[id].x, -5);
  EXPECT_EQ(frontend.surfaces[dialog].parent, id);
  const auto frame = frame_of(frontend, 32);
  ASSERT_TRUE(frame);
  EXPECT_EQ(pixel(frontend, *frame, 0, 1), value);
  // The poll from before waits for the next event, and has its fence.
  EXPECT_FALSE(guest->poll_answer(poll, std::chrono::milliseconds(20)));
  frontend.send(gui::Type::kKey, gui::Key{{}, id, 30, 1});
  const auto answer = guest->poll_answer(poll);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->type, kOk);
  EXPECT_EQ(answer->fence_id, 99U);
  const auto key = wait_event(*other.device, window::kEventKey, head);
  ASSERT_TRUE(key);
  EXPECT_EQ(key->window, 7U);
  ASSERT_EQ(submit(Commands().damage(7, 42)), kOk);
  EXPECT_TRUE(eventually([&] {
    frontend.drain();
    const auto done = wait_event(*other.device, window::kEventDone, head);
    return done && done->a == 42;
  }));
  leave();
}

TEST_F(GpuSnapshot, a_poll_is_held_over_freezes_and_its_commands_run_once) {
  open();
  ASSERT_EQ(submit(Commands().create(7).title(7, "w")), kOk);
  const uint16_t poll = guest->start_poll(kContext, 0, 5);
  for (int i = 0; i < 50; ++i) {
    guest->transport().freeze();
    guest->transport().thaw();
  }
  EXPECT_FALSE(guest->poll_answer(poll, std::chrono::milliseconds(20)));
  FakeFrontend frontend = connect();
  const SurfaceId id = find(frontend, "w");
  frontend.send(gui::Type::kKey, gui::Key{{}, id, 30, 1});
  const auto answer = guest->poll_answer(poll);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->fence_id, 5U);
}

TEST_F(GpuSnapshot, what_was_given_up_and_held_by_a_frontend_is_released_in_the_other_process) {
  open();
  buffer(2, 8192);
  ASSERT_EQ(submit(Commands().create(7).title(7, "w").attach(7, 2)), kOk);
  FakeFrontend frontend = connect();
  frontend.answers_gone = false;
  ASSERT_TRUE(frame_of(frontend, 32));
  ASSERT_EQ(guest->unref(2), kOk);
  Other other(*memory);
  move_to(other);
  const auto released = wait_event(*other.device, window::kEventReleased);
  ASSERT_TRUE(released);
  EXPECT_EQ(released->a, 2U);
  leave();
}

TEST_F(GpuSnapshot, a_frame_that_no_frontend_has_read_is_done_in_the_other_process) {
  open();
  buffer(2, 8192);
  FakeFrontend frontend = connect();
  frontend.answers_frames = false;
  ASSERT_EQ(submit(Commands().create(7).title(7, "w").attach(7, 2)), kOk);
  ASSERT_TRUE(frame_of(frontend, 32));
  ASSERT_EQ(submit(Commands().damage(7, 17)), kOk);
  Other other(*memory);
  move_to(other);
  const auto done = wait_event(*other.device, window::kEventDone);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->a, 17U);
  leave();
}

TEST_F(GpuSnapshot, guest_blobs_on_a_screen_keep_what_was_flushed) {
  const GuestAddr at = guest->alloc(64 * 64 * 4);
  paint(at, 64, 64, 500);
  ASSERT_EQ(guest->create_blob(9, 64 * 64 * 4, 0, VIRTIO_GPU_BLOB_MEM_GUEST,
                               {{at.value, 64 * 64 * 4, 0}}),
            kOk);
  virtio_gpu_set_scanout_blob command{};
  command.resource_id = 9;
  command.width = command.height = 64;
  command.r = {0, 0, 64, 64};
  command.format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM;
  command.strides[0] = 64 * 4;
  ASSERT_EQ(guest->send(VIRTIO_GPU_CMD_SET_SCANOUT_BLOB, command), kOk);
  paint(at, 64, 64, 7000);  // not flushed
  Other other(*memory);
  move_to(other);
  FakeFrontend frontend = other.connect();
  const auto frame = frame_of(frontend, 64);
  ASSERT_TRUE(frame);
  EXPECT_EQ(pixel(frontend, *frame, 1, 1), 565U);
  ASSERT_EQ(guest->flush(9, {0, 0, 64, 64}), kOk);
  EXPECT_EQ(pixel(frontend, *frame, 1, 1), 7065U);
  leave();
}

TEST_F(GpuSnapshot, empty_buffers_take_no_room_in_the_file) {
  ASSERT_EQ(guest->create_2d(1, 4096, 4096), kOk);  // 64 MiB
  guest->transport().freeze();
  EXPECT_LT(guest->transport().save().size(), 4096U);
  EXPECT_EQ(counter(ledger().live.bytes), uint64_t{64} << 20);
  guest->transport().thaw();
}

TEST_F(GpuSnapshot, buffers_above_the_hosts_limit_are_refused) {
  ASSERT_EQ(guest->create_2d(1, 1024, 1024), kOk);  // 4 MiB
  guest->transport().freeze();
  const auto state = guest->transport().save();
  Other other(*memory, 2 << 20);
  EXPECT_FALSE(guest->transport().move_to(*other.device, state));
  leave();
}

// A file may say anything: an error, or a device that goes on, and can be reset.
TEST_F(GpuSnapshot, any_state_from_a_file_is_refused_or_harmless) {
  open();
  buffer(2, 8192);
  ASSERT_EQ(submit(Commands().create(7).title(7, "w").attach(7, 2).damage(7, 1)), kOk);
  ASSERT_EQ(guest->create_2d(5, 16, 16), kOk);
  const GuestAddr at = guest->alloc(4096);
  ASSERT_EQ(guest->attach(5, at, 1024), kOk);
  ASSERT_EQ(guest->set_scanout(0, 5, {0, 0, 16, 16}), kOk);
  (void)guest->start_poll(kContext, header(*device).head, 99);
  guest->transport().freeze();
  const auto state = guest->transport().save();
  Other other(*memory);
  for (size_t size = 0; size < state.size(); size += size < 1500 ? 1 : 97)
    ASSERT_FALSE(guest->transport().move_to(*other.device, std::span(state).first(size))) << size;
  std::mt19937 random(11);
  int taken = 0;
  for (int i = 0; i < 1500; ++i) {
    auto bytes = state;
    const size_t among = random() % 2 == 0 ? std::min<size_t>(bytes.size(), 600) : bytes.size();
    for (unsigned flips = 1 + random() % 3; flips > 0; --flips)
      bytes[random() % among] ^= static_cast<uint8_t>(1U << random() % 8);
    if (guest->transport().move_to(*other.device, bytes)) ++taken;
  }
  EXPECT_GT(taken, 100) << "hardly anything got past the first check";
  ASSERT_TRUE(guest->transport().move_to(*other.device, state));
  guest->transport().thaw();
  EXPECT_EQ(submit(Commands().damage(7, 2)), kOk);
  // Events and whether sizes changed; then the last serial given.
  auto serials = state;
  for (size_t i = 5; i < 13; ++i) serials[i] = 0xff;
  EXPECT_FALSE(guest->transport().move_to(*other.device, serials));
  leave();
}

}  // namespace
}  // namespace lethe
