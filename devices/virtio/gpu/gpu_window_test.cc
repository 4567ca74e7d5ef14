// Contexts of the window capset: windows, what frontends see of them, and the events that come
// back.
#include "base/test_util.h"
#include "devices/virtio/gpu/gpu_test_util.h"

namespace lethe {
namespace {

using Commands = FakeWindowCommands;

class GpuWindow : public GpuTest {
 protected:
  static constexpr uint32_t kContext = 3;
  static constexpr uint32_t kRing = 1;  // resource
  static constexpr uint64_t kRingBytes = 4096;
  static constexpr uint32_t kCapacity = window::ring_capacity(kRingBytes);
  static constexpr uint64_t kBufferBytes = 32 * 32 * 4;
  static constexpr std::chrono::milliseconds kNot{30};  // for what must not come

  GpuWindow() { open(); }
  // A context with an event ring at the start of the window.
  void open() {
    EXPECT_EQ(guest->context_create(kContext), kOk);
    buffer(kRing, 0, kRingBytes);
    EXPECT_EQ(guest->submit(kContext, Commands().ring(kRing).bytes()), kOk);
  }
  void buffer(uint32_t id, uint64_t offset, uint64_t bytes = kBufferBytes) {
    EXPECT_EQ(guest->create_blob(id, bytes, kContext), kOk);
    EXPECT_EQ(guest->context_attach(kContext, id), kOk);
    EXPECT_EQ(guest->map(id, offset), kMapped);
  }
  void drop(uint32_t id) {
    EXPECT_EQ(guest->unmap(id), kOk);
    EXPECT_EQ(guest->context_detach(kContext, id), kOk);
    EXPECT_EQ(guest->unref(id), kOk);
  }
  uint32_t submit(const Commands& commands) { return guest->submit(kContext, commands.bytes()); }
  [[nodiscard]] window::EventRingHeader header() const {
    window::EventRingHeader h;
    std::memcpy(&h, device->shared_memory()->host, sizeof h);
    return h;
  }
  // The next event; waits for it by a poll. Nothing if none comes.
  std::optional<window::Event> next(std::chrono::milliseconds patience = FakeTransport::kPatience) {
    if (header().head == tail) {
      if (!poll) poll = guest->start_poll(kContext, tail, ++fence);
      if (!guest->poll_answer(*poll, patience)) return std::nullopt;
      poll.reset();
      if (header().head == tail) return std::nullopt;
    }
    window::Event event;
    std::memcpy(&event,
                device->shared_memory()->host + sizeof(window::EventRingHeader) +
                    uint64_t{tail % kCapacity} * sizeof event,
                sizeof event);
    ++tail;
    return event;
  }
  std::optional<window::Event> next_of(uint32_t type) {
    for (int i = 0; i < 1000; ++i) {
      const auto event = next();
      if (!event || event->type == type) return event;
    }
    return std::nullopt;
  }
  // The window with this title, once the frontend knows it.
  static SurfaceId find(FakeFrontend& frontend, const std::string& title) {
    for (int i = 0; i < 1000; ++i) {
      for (const auto& [id, surface] : frontend.surfaces)
        if (title == surface.title) return id;
      if (!frontend.receive()) break;
    }
    return 0;
  }
  uint32_t tail = 0;
  uint64_t fence = 0;
  std::optional<uint16_t> poll;
};

TEST_F(GpuWindow, a_window_is_a_surface_with_title_place_and_pixels) {
  FakeFrontend frontend = connect();
  buffer(2, 8192);
  ASSERT_EQ(submit(Commands()
                       .create(7, 32, 32, window::kWindowVisible | window::kWindowResizable)
                       .title(7, "xterm")
                       .geometry(7, -5, 9, 32, 32, window::kWindowVisible)
                       .attach(7, 2)),
            kOk);
  const SurfaceId id = find(frontend, "xterm");
  ASSERT_NE(id, 0U);
  const auto frame = frame_of(frontend, 32);
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->surface, id);
  EXPECT_EQ(frontend.surfaces[id].kind, static_cast<uint32_t>(gui::SurfaceKind::kWindow));
  EXPECT_EQ(frontend.surfaces[id].x, -5);
  EXPECT_EQ(frontend.surfaces[id].y, 9);
  EXPECT_EQ(frontend.surfaces[id].flags, gui::kSurfaceVisible);
  const uint32_t value = 0x123456;
  std::memcpy(device->shared_memory()->host + 8192, &value, sizeof value);
  EXPECT_EQ(pixel(frontend, *frame, 0, 0), value);
  ASSERT_EQ(submit(Commands().destroy(7)), kOk);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kSurfaceGone));
}

TEST_F(GpuWindow, a_dialog_names_its_parent_until_that_goes) {
  FakeFrontend frontend = connect();
  ASSERT_EQ(submit(Commands()
                       .create(1)
                       .title(1, "parent")
                       .create(2, 32, 32, window::kWindowVisible | window::kWindowDialog, 1)
                       .title(2, "dialog")),
            kOk);
  const SurfaceId parent = find(frontend, "parent");
  const SurfaceId dialog = find(frontend, "dialog");
  ASSERT_NE(dialog, 0U);
  EXPECT_EQ(frontend.surfaces[dialog].parent, parent);
  ASSERT_EQ(submit(Commands().destroy(1)), kOk);
  while (frontend.surfaces[dialog].parent != 0) ASSERT_TRUE(frontend.receive());
}

TEST_F(GpuWindow, unmapped_but_not_destroyed_it_stays_invisible) {
  FakeFrontend frontend = connect();
  buffer(2, 8192);
  ASSERT_EQ(submit(Commands().create(1).title(1, "w").attach(1, 2)), kOk);
  const SurfaceId id = find(frontend, "w");
  ASSERT_TRUE(frame_of(frontend, 32));
  const size_t open = open_descriptors();
  ASSERT_EQ(submit(Commands().geometry(1, 0, 0, 32, 32, 0)), kOk);
  while (frontend.surfaces[id].flags != 0) ASSERT_TRUE(frontend.receive());
  ASSERT_EQ(submit(Commands().damage(1, 5)), kOk);  // its life goes on
  EXPECT_EQ(next_of(window::kEventDone)->a, 5U);
  // It keeps its buffer, as the frontend does: beside it there is the ring.
  EXPECT_EQ(counter(ledger().live.buffers), 2U);
  EXPECT_EQ(counter(ledger().live.bytes), kRingBytes + kBufferBytes);
  EXPECT_EQ(counter(ledger().orphan.buffers), 0U);
  EXPECT_TRUE(frontend.gone.empty());
  EXPECT_EQ(open_descriptors(), open);
  ASSERT_EQ(submit(Commands().geometry(1, 0, 0, 32, 32, window::kWindowVisible)), kOk);
  while (frontend.surfaces[id].flags == 0) ASSERT_TRUE(frontend.receive());
  EXPECT_TRUE(frontend.surfaces_gone.empty());
}

TEST_F(GpuWindow, input_comes_back_as_events) {
  FakeFrontend frontend = connect();
  ASSERT_EQ(submit(Commands().create(7).title(7, "w")), kOk);
  const SurfaceId id = find(frontend, "w");
  frontend.send(gui::Type::kFocus, gui::Focus{{}, id, 1, 0});
  frontend.send(gui::Type::kKey, gui::Key{{}, id, 30, 1});
  frontend.send(gui::Type::kMotion, gui::Motion{{}, id, 3, 4});
  frontend.send(gui::Type::kButton, gui::Button{{}, id, 0x110, 1});
  frontend.send(gui::Type::kWheel, gui::Wheel{{}, id, -1, 2});
  frontend.send(gui::Type::kConfigure, gui::Configure{{}, id, -10, 20, 300, 400});
  frontend.send(gui::Type::kClose, gui::Close{{}, id});
  const auto expect = [&](uint32_t type, uint32_t a, uint32_t b, uint32_t c = 0, uint32_t d = 0) {
    const auto event = next();
    ASSERT_TRUE(event);
    EXPECT_EQ(event->type, type);
    EXPECT_EQ(event->window, 7U);
    EXPECT_EQ(event->a, a);
    EXPECT_EQ(event->b, b);
    EXPECT_EQ(event->c, c);
    EXPECT_EQ(event->d, d);
  };
  expect(window::kEventFocus, 1, 0);
  expect(window::kEventKey, 30, 1);
  expect(window::kEventMotion, 3, 4);
  expect(window::kEventButton, 0x110, 1);
  expect(window::kEventWheel, static_cast<uint32_t>(-1), 2);
  expect(window::kEventConfigure, static_cast<uint32_t>(-10), 20, 300, 400);
  expect(window::kEventClose, 0, 0);
  EXPECT_TRUE(take_input().empty());  // the screen's keyboard hears none of it
}

TEST_F(GpuWindow, a_poll_is_held_until_there_is_an_event_and_has_its_fence) {
  const uint16_t head = guest->start_poll(kContext, 0, 0x77);
  EXPECT_FALSE(guest->poll_answer(head, kNot));
  buffer(2, 8192);  // everything else is answered meanwhile
  drop(2);
  const auto answer = guest->poll_answer(head);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->type, kOk);
  EXPECT_EQ(answer->fence_id, 0x77U);
  EXPECT_EQ(answer->flags, uint32_t{VIRTIO_GPU_FLAG_FENCE | VIRTIO_GPU_FLAG_INFO_RING_IDX});
  EXPECT_EQ(answer->ring_idx, window::kEventRing);
  EXPECT_EQ(answer->ctx_id, kContext);
  const auto event = next();
  EXPECT_EQ(event->type, uint32_t{window::kEventReleased});
  EXPECT_EQ(event->a, 2U);
}

TEST_F(GpuWindow, polls_are_answered_at_once_unless_fenced_on_the_event_ring) {
  EXPECT_EQ(submit(Commands().poll(0)), kOk);  // not fenced
  const uint16_t head = guest->start_poll(kContext, 0, 5, 0);
  const auto answer = guest->poll_answer(head);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->type, kOk);
}

TEST_F(GpuWindow, a_second_poll_answers_the_first) {
  const uint16_t first = guest->start_poll(kContext, 0, 1);
  const uint16_t second = guest->start_poll(kContext, 0, 2);
  EXPECT_EQ(guest->poll_answer(first)->fence_id, 1U);
  EXPECT_FALSE(guest->poll_answer(second, kNot));
  EXPECT_EQ(guest->context_destroy(kContext), kOk);
  EXPECT_EQ(guest->poll_answer(second)->fence_id, 2U);
}

TEST_F(GpuWindow, a_poll_whose_ring_ends_is_answered) {
  const uint16_t head = guest->start_poll(kContext, 0, 1);
  EXPECT_FALSE(guest->poll_answer(head, kNot));
  EXPECT_EQ(submit(Commands().ring(0)), kOk);
  EXPECT_TRUE(guest->poll_answer(head));
  EXPECT_EQ(submit(Commands().poll(0)), kBad);
  EXPECT_EQ(submit(Commands().ring(kRing)), kOk);  // and begins anew
}

TEST_F(GpuWindow, a_ring_whose_memory_goes_ends) {
  const uint16_t head = guest->start_poll(kContext, 0, 1);
  drop(kRing);
  EXPECT_TRUE(guest->poll_answer(head));
  EXPECT_EQ(submit(Commands().poll(0)), kBad);
  ASSERT_EQ(submit(Commands().create(1).destroy(1)), kOk);  // windows work without one
}

TEST_F(GpuWindow, done_has_the_serial_that_was_read) {
  FakeFrontend frontend = connect();
  buffer(2, 8192);
  ASSERT_EQ(submit(Commands().create(1).title(1, "w").attach(1, 2)), kOk);
  ASSERT_TRUE(frame_of(frontend, 32));  // answers by itself
  frontend.answers_frames = false;
  ASSERT_EQ(submit(Commands().damage(1, 100, 0, 0, 4, 4)), kOk);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  const gui::Frame frame = frontend.frames.begin()->second.width == 32
                               ? frontend.frames.begin()->second
                               : frontend.frames.rbegin()->second;
  for (uint32_t serial = 101; serial < 150; ++serial)
    ASSERT_EQ(submit(Commands().damage(1, serial)), kOk);
  frontend.done_reading(frame.surface, frame.frame);
  EXPECT_EQ(next_of(window::kEventDone)->a, 100U);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));  // all the rest, as one
  frontend.answers_frames = true;
  const gui::Frame last = frontend.frames[frame.surface];
  frontend.done_reading(last.surface, last.frame);
  EXPECT_EQ(next_of(window::kEventDone)->a, 149U);
}

TEST_F(GpuWindow, released_comes_when_no_frontend_maps_the_buffer) {
  FakeFrontend frontend = connect();
  frontend.answers_gone = false;
  buffer(2, 8192);
  ASSERT_EQ(submit(Commands().create(1).attach(1, 2)), kOk);
  const auto frame = frame_of(frontend, 32);
  ASSERT_TRUE(frame);
  drop(2);
  while (frontend.gone.empty()) ASSERT_TRUE(frontend.receive());
  while (const auto event = next(kNot)) EXPECT_NE(event->type, uint32_t{window::kEventReleased});
  buffer(2, 8192);  // its number may be used again at once
  frontend.unmap({frame->buffer, frame->generation});
  EXPECT_EQ(next_of(window::kEventReleased)->a, 2U);
}

TEST_F(GpuWindow, motion_merges_in_a_full_ring_and_keys_are_counted_as_lost) {
  FakeFrontend frontend = connect();
  ASSERT_EQ(submit(Commands().create(1).title(1, "w")), kOk);
  const SurfaceId id = find(frontend, "w");
  constexpr int kMoves = 500;
  for (int i = 0; i < kMoves; ++i)
    frontend.send(gui::Type::kMotion, gui::Motion{{}, id, i % 30, i % 29});
  // More keys than fit.
  for (uint32_t i = 0; i < 2 * kCapacity; ++i) {
    frontend.send(gui::Type::kKey, gui::Key{{}, id, 30, 1});
    frontend.send(gui::Type::kKey, gui::Key{{}, id, 30, 0});
  }
  frontend.send(gui::Type::kMotion, gui::Motion{{}, id, 17, 18});
  // Half the ring took motion; one more motion waited and came before the first key.
  constexpr uint32_t kLost = 4 * kCapacity - (kCapacity - kCapacity / 2 - 1);
  EXPECT_TRUE(eventually([&] { return header().lost >= kLost; }));
  EXPECT_EQ(header().head, kCapacity);
  EXPECT_EQ(header().lost, kLost);
  std::vector<window::Event> events;
  while (events.size() < kCapacity + 1) {
    const auto event = next();
    ASSERT_TRUE(event);
    events.push_back(*event);
  }
  EXPECT_FALSE(next(kNot));
  EXPECT_EQ(events[kCapacity / 2].type, uint32_t{window::kEventMotion});
  EXPECT_EQ(events[kCapacity / 2].a, (kMoves - 1) % 30U);
  EXPECT_EQ(events[kCapacity / 2 + 1].type, uint32_t{window::kEventKey});
  EXPECT_EQ(events.back().type, uint32_t{window::kEventMotion});  // the last one is not lost
  EXPECT_EQ(events.back().a, 17U);
}

TEST_F(GpuWindow, a_tail_that_was_not_written_yet_is_refused) {
  EXPECT_EQ(submit(Commands().poll(1)), kBad);
  EXPECT_EQ(submit(Commands().poll(~0U)), kBad);
  buffer(2, 8192);
  drop(2);
  ASSERT_TRUE(next());
  EXPECT_EQ(submit(Commands().poll(1)), kOk);
  EXPECT_EQ(submit(Commands().poll(0)), kBad);  // back
}

TEST_F(GpuWindow, guest_memory_is_copied_by_damage) {
  FakeFrontend frontend = connect();
  const GuestAddr at = guest->alloc(kBufferBytes);
  paint(at, 32, 32, 100);
  ASSERT_EQ(guest->create_blob(5, kBufferBytes, 0, VIRTIO_GPU_BLOB_MEM_GUEST,
                               {{at.value, kBufferBytes, 0}}),
            kOk);
  ASSERT_EQ(guest->context_attach(kContext, 5), kOk);
  ASSERT_EQ(submit(Commands().create(1).attach(1, 5)), kOk);
  const auto frame = frame_of(frontend, 32);
  ASSERT_TRUE(frame);
  EXPECT_EQ(pixel(frontend, *frame, 31, 31), 100U + 32 * 32 - 1);
  paint(at, 32, 32, 9000);
  ASSERT_EQ(submit(Commands().damage(1, 1, 4, 4, 2, 2)), kOk);
  EXPECT_EQ(pixel(frontend, *frame, 5, 5), 9000U + 5 * 32 + 5);
  EXPECT_EQ(pixel(frontend, *frame, 6, 5), 100U + 5 * 32 + 6);
  EXPECT_EQ(guest->unref(5), kOk);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBufferGone));
  EXPECT_EQ(next_of(window::kEventReleased)->a, 5U);
}

TEST_F(GpuWindow, another_contexts_buffers_can_not_be_shown) {
  ASSERT_EQ(guest->context_create(4), kOk);
  ASSERT_EQ(guest->create_blob(9, kBufferBytes, 4), kOk);
  ASSERT_EQ(guest->context_attach(4, 9), kOk);
  EXPECT_EQ(submit(Commands().create(1).attach(1, 9)), kBad);
  EXPECT_EQ(submit(Commands().ring(0).ring(9)), kBad);
  ASSERT_EQ(guest->context_attach(kContext, 9), kOk);
  EXPECT_EQ(submit(Commands().attach(1, 9)), kOk);
  // A context that comes later under a number that was used before has none of its rights.
  ASSERT_EQ(guest->context_destroy(4), kOk);
  ASSERT_EQ(guest->context_create(4), kOk);
  EXPECT_EQ(guest->submit(4, Commands().create(1).attach(1, 9).bytes()), kBad);
}

TEST_F(GpuWindow, a_context_without_the_capset_has_no_windows) {
  ASSERT_EQ(guest->context_create(8, 0), kOk);
  EXPECT_EQ(guest->submit(8, Commands().create(1).bytes()), kBad);
  EXPECT_EQ(guest->context_create(9, 60), kBad);
  EXPECT_EQ(guest->context_create(0), kNoContext);
  EXPECT_EQ(guest->context_create(8), kNoContext);
  EXPECT_EQ(guest->context_destroy(99), kNoContext);
  EXPECT_EQ(guest->submit(99, {}), kNoContext);
  EXPECT_EQ(guest->context_attach(99, kRing), kNoContext);
  EXPECT_EQ(guest->context_attach(8, 99), kNoResource);
  EXPECT_EQ(guest->context_detach(8, kRing), kBad);  // it was not attached
}

TEST_F(GpuWindow, the_capset_says_what_there_is) {
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_GET_CAPSET_INFO, virtio_gpu_get_capset_info{}),
            uint32_t{VIRTIO_GPU_RESP_OK_CAPSET_INFO});
  const auto info = guest->answer<virtio_gpu_resp_capset_info>();
  EXPECT_EQ(info.capset_id, window::kWindowCapset);
  EXPECT_LT(info.capset_id, 31U);  // what Linux 6.1 can use
  EXPECT_EQ(info.capset_max_size, sizeof(window::Capset));
  virtio_gpu_get_capset command{};
  command.capset_id = window::kWindowCapset;
  command.capset_version = window::kVersion;
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_GET_CAPSET, command), uint32_t{VIRTIO_GPU_RESP_OK_CAPSET});
  EXPECT_EQ(guest->written(), sizeof(virtio_gpu_ctrl_hdr) + sizeof(window::Capset));
  command.capset_version = window::kVersion + 1;
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_GET_CAPSET, command), kBad);
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_GET_CAPSET_INFO, virtio_gpu_get_capset_info{{}, 1, 0}),
            kBad);
}

TEST_F(GpuWindow, a_contexts_end_takes_its_windows_and_leaves_the_buffers) {
  FakeFrontend frontend = connect();
  buffer(2, 8192);
  ASSERT_EQ(submit(Commands().create(1).title(1, "w").attach(1, 2)), kOk);
  const SurfaceId id = find(frontend, "w");
  ASSERT_TRUE(frame_of(frontend, 32));
  ASSERT_EQ(guest->context_destroy(kContext), kOk);
  while (frontend.surfaces_gone.empty()) ASSERT_TRUE(frontend.receive());
  EXPECT_EQ(frontend.surfaces_gone.front(), id);
  EXPECT_EQ(counter(ledger().live.buffers), 2U);
  EXPECT_EQ(guest->unref(2), kOk);
  EXPECT_EQ(guest->unref(kRing), kOk);
  while (frontend.gone.empty()) ASSERT_TRUE(frontend.receive());
  EXPECT_EQ(counter(ledger().live.buffers), 0U);
}

TEST_F(GpuWindow, a_buffer_that_goes_while_windows_show_it_is_shown_nowhere) {
  FakeFrontend frontend = connect();
  buffer(2, 8192);
  ASSERT_EQ(submit(Commands().create(1).create(2).title(2, "b").attach(1, 2).attach(2, 2)), kOk);
  const SurfaceId second = find(frontend, "b");
  while (frontend.frames[second].width != 32) ASSERT_TRUE(frontend.receive());
  ASSERT_EQ(guest->unref(2), kOk);  // mapped, attached and shown
  while (frontend.frames[second].buffer != gui::kNoBuffer || frontend.gone.empty())
    ASSERT_TRUE(frontend.receive());
  EXPECT_EQ(next_of(window::kEventReleased)->a, 2U);
  EXPECT_EQ(submit(Commands().attach(1, 2)), kBad);
  EXPECT_EQ(submit(Commands().damage(1, 3)), kOk);  // of nothing
}

TEST_F(GpuWindow, a_reset_tells_the_frontends_and_a_new_driver_begins_afresh) {
  FakeFrontend frontend = connect();
  for (int round = 0; round < 3; ++round) {
    buffer(2, 8192);
    ASSERT_EQ(submit(Commands().create(1).title(1, "w").attach(1, 2)), kOk);
    ASSERT_NE(find(frontend, "w"), 0U);
    ASSERT_TRUE(frame_of(frontend, 32));
    (void)guest->start_poll(kContext, 0, 1);  // held while the reset comes
    const size_t gone = frontend.surfaces_gone.size();
    guest->transport().reset();
    EXPECT_EQ(counter(ledger().live.buffers), 0U);
    EXPECT_EQ(counter(device->counters().contexts), 0U);
    while (frontend.surfaces_gone.size() == gone) ASSERT_TRUE(frontend.receive());
    frontend.frames.clear();
    guest->restart();
    tail = 0;
    open();
  }
}

// What an unbind of the guest's driver is to the device while lethe-agent has windows: buffers that
// two frontends map, one of whom does not let go yet, a window without one, and a poll that waits.
TEST_F(GpuWindow, a_driver_that_is_unbound_leaves_no_window_no_buffer_and_no_memory) {
  constexpr uint32_t kWindows = 6;
  FakeFrontend holder = connect();
  FakeFrontend other = connect();
  holder.answers_gone = false;
  Commands commands;
  for (uint32_t i = 0; i < kWindows; ++i) {
    const uint64_t offset = 8192 + i * kBufferBytes;
    buffer(10 + i, offset);
    std::memset(device->shared_memory()->host + offset, 0x55, kBufferBytes);
    commands.create(1 + i).title(1 + i, fmt::format("w{}", i).c_str()).attach(1 + i, 10 + i);
  }
  ASSERT_EQ(submit(commands.create(20).title(20, "empty")), kOk);
  for (FakeFrontend* frontend : {&holder, &other}) {
    ASSERT_NE(find(*frontend, "empty"), 0U);
    while (frontend->buffers.size() < kWindows) ASSERT_TRUE(frontend->receive());
  }
  (void)guest->start_poll(kContext, 0, 1);

  guest->transport().reset();

  // The guest's memory is gone at once, whoever looks.
  EXPECT_EQ(counter(device->counters().contexts), 0U);
  EXPECT_EQ(counter(ledger().live.buffers), 0U);
  EXPECT_EQ(counter(ledger().live.bytes), 0U);
  for (uint64_t i = 0; i < 8192 + kWindows * kBufferBytes; ++i)
    ASSERT_EQ(device->shared_memory()->host[i], 0) << "at " << i;
  for (FakeFrontend* frontend : {&holder, &other})
    while (frontend->surfaces_gone.size() < kWindows + 1 || frontend->gone.size() < kWindows)
      ASSERT_TRUE(frontend->receive());
  // What a frontend still maps is the ledger's, until it lets go.
  EXPECT_EQ(counter(ledger().orphan.buffers), kWindows);
  for (const gui::BufferGone& gone : holder.gone) holder.unmap({gone.buffer, gone.generation});
  EXPECT_TRUE(eventually([&] { return counter(ledger().orphan.buffers) == 0; }));
  EXPECT_TRUE(eventually([&] { return counter(ledger().freeing.buffers) == 0; }));
  EXPECT_EQ(counter(ledger().orphan.bytes), 0U);
  EXPECT_EQ(counter(ledger().revoked.buffers), 0U);
  EXPECT_EQ(counter(ledger().leaked.buffers), 0U);
}

TEST_F(GpuWindow, stopping_the_queue_gives_a_held_poll_back) {
  const uint16_t head = guest->start_poll(kContext, 0, 1);
  EXPECT_FALSE(guest->poll_answer(head, kNot));
  guest->transport().stop_queue(GpuDevice::kControlQueue);
  guest->transport().restart_queue(GpuDevice::kControlQueue);
  EXPECT_EQ(submit(Commands().create(1).destroy(1)), kOk);
}

}  // namespace
}  // namespace lethe
