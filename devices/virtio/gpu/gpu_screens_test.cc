// Several screens: what the guest is told, resize at run time, input, cursor.
#include "devices/virtio/gpu/edid.h"
#include "devices/virtio/gpu/gpu_test_util.h"

namespace lethe {
namespace {

using testing::ElementsAre;

class GpuScreens : public GpuTest {
 protected:
  GpuScreens()
      : GpuTest({}, {.screens = 2, .width = 640, .height = 480, .window_memory = kWindow}) {}
  virtio_gpu_resp_display_info display_info() {
    virtio_gpu_ctrl_hdr request{};
    request.type = VIRTIO_GPU_CMD_GET_DISPLAY_INFO;
    EXPECT_EQ(guest->raw({reinterpret_cast<const uint8_t*>(&request), sizeof request}),
              uint32_t{VIRTIO_GPU_RESP_OK_DISPLAY_INFO});
    return guest->answer<virtio_gpu_resp_display_info>();
  }
  uint32_t config(uint32_t offset) {
    uint32_t value = 0;
    device->read_config(offset, {reinterpret_cast<uint8_t*>(&value), sizeof value});
    return value;
  }
  void clear_events(uint32_t value) {
    device->write_config(offsetof(virtio_gpu_config, events_clear),
                         {reinterpret_cast<const uint8_t*>(&value), sizeof value});
  }
  // The surface of an output.
  static SurfaceId surface_of(FakeFrontend& frontend, uint32_t output) {
    for (int i = 0; i < 100; ++i) {
      for (const auto& [id, surface] : frontend.surfaces)
        if (surface.output == output) return id;
      if (!frontend.receive()) break;
    }
    return 0;
  }
  static void resize(FakeFrontend& frontend, SurfaceId surface, uint32_t width, uint32_t height) {
    frontend.send(gui::Type::kConfigure, gui::Configure{{}, surface, 0, 0, width, height});
  }
  // Guest memory as a framebuffer of `width` by 64.
  uint32_t scanout_blob(uint32_t scanout, uint32_t id, uint32_t width, uint32_t offset,
                        const virtio_gpu_rect& r) {
    virtio_gpu_set_scanout_blob command{};
    command.r = r;
    command.scanout_id = scanout;
    command.resource_id = id;
    command.width = width;
    command.height = 64;
    command.format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM;
    command.strides[0] = width * kPixel;
    command.offsets[0] = offset;
    return guest->send(VIRTIO_GPU_CMD_SET_SCANOUT_BLOB, command);
  }
  // What the flush of a blob copied, in pixels.
  uint64_t pixels_of_flush(uint32_t id, const virtio_gpu_rect& r) {
    on_gui([] {});
    const uint64_t before = counter(device->counters().bytes_copied);
    EXPECT_EQ(guest->flush(id, r), kOk);
    on_gui([] {});
    return (counter(device->counters().bytes_copied) - before) / kPixel;
  }
  uint32_t cursor(uint32_t scanout, uint32_t id, uint32_t hot_x = 0, uint32_t hot_y = 0) {
    return guest->cursor(VIRTIO_GPU_CMD_UPDATE_CURSOR, scanout, id, hot_x, hot_y);
  }
};

TEST_F(GpuScreens, the_configuration_says_how_many) {
  EXPECT_EQ(config(offsetof(virtio_gpu_config, num_scanouts)), 2U);
  EXPECT_EQ(config(offsetof(virtio_gpu_config, num_capsets)), 1U);
  EXPECT_EQ(config(offsetof(virtio_gpu_config, events_read)), 0U);
}

TEST_F(GpuScreens, display_info_has_them_side_by_side) {
  const auto info = display_info();
  EXPECT_EQ(info.pmodes[0].enabled, 1U);
  EXPECT_EQ(info.pmodes[1].enabled, 1U);
  EXPECT_EQ(info.pmodes[2].enabled, 0U);
  EXPECT_EQ(info.pmodes[1].r.x, 640U);
  EXPECT_EQ(info.pmodes[1].r.width, 640U);
  EXPECT_EQ(info.pmodes[1].r.height, 480U);
}

TEST_F(GpuScreens, edid_is_of_the_screens_size) {
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_GET_EDID, virtio_gpu_cmd_get_edid{{}, 1, 0}),
            uint32_t{VIRTIO_GPU_RESP_OK_EDID});
  const auto answer = guest->answer<virtio_gpu_resp_edid>();
  const Edid expected = make_edid(640, 480, 1);
  EXPECT_EQ(answer.size, expected.size);
  EXPECT_EQ(std::memcmp(answer.edid, expected.bytes.data(), expected.size), 0);
  EXPECT_EQ(guest->written(), sizeof(virtio_gpu_resp_edid));
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_GET_EDID, virtio_gpu_cmd_get_edid{{}, 2, 0}),
            uint32_t{VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID});
}

TEST_F(GpuScreens, a_frontends_size_becomes_the_screens_wish) {
  FakeFrontend frontend = connect();
  const SurfaceId second = surface_of(frontend, 1);
  resize(frontend, surface_of(frontend, 0), 1000, 700);
  ASSERT_TRUE(guest->transport().wait_config_changes(1));
  EXPECT_EQ(config(offsetof(virtio_gpu_config, events_read)), uint32_t{VIRTIO_GPU_EVENT_DISPLAY});
  auto info = display_info();
  EXPECT_EQ(info.pmodes[0].r.width, 1000U);
  EXPECT_EQ(info.pmodes[0].r.height, 700U);
  EXPECT_EQ(info.pmodes[1].r.x, 1000U);
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_GET_EDID, virtio_gpu_cmd_get_edid{}),
            uint32_t{VIRTIO_GPU_RESP_OK_EDID});
  EXPECT_EQ(std::memcmp(guest->answer<virtio_gpu_resp_edid>().edid,
                        make_edid(1000, 700, 0).bytes.data(), kEdidBlockBytes),
            0);
  clear_events(VIRTIO_GPU_EVENT_DISPLAY);
  EXPECT_EQ(config(offsetof(virtio_gpu_config, events_read)), 0U);
  // Sizes that no driver takes are brought into range.
  resize(frontend, second, 1, 1);
  ASSERT_TRUE(guest->transport().wait_config_changes(2));
  EXPECT_EQ(display_info().pmodes[1].r.width, 64U);
}

TEST_F(GpuScreens, a_size_that_a_late_clear_hid_is_told_again) {
  FakeFrontend frontend = connect();
  const SurfaceId first = surface_of(frontend, 0);
  resize(frontend, first, 1000, 700);
  ASSERT_TRUE(guest->transport().wait_config_changes(1));
  (void)display_info();
  resize(frontend, first, 900, 600);  // while the driver works on the one before
  ASSERT_TRUE(guest->transport().wait_config_changes(2));
  clear_events(VIRTIO_GPU_EVENT_DISPLAY);
  ASSERT_TRUE(guest->transport().wait_config_changes(3));
  EXPECT_EQ(config(offsetof(virtio_gpu_config, events_read)), uint32_t{VIRTIO_GPU_EVENT_DISPLAY});
  EXPECT_EQ(display_info().pmodes[0].r.width, 900U);
}

TEST_F(GpuScreens, two_screens_may_show_two_parts_of_one_resource) {
  FakeFrontend frontend = connect();
  const GuestAddr at = guest->alloc(128 * 64 * 4);
  paint(at, 128, 64, 0);
  ASSERT_EQ(guest->create_2d(1, 128, 64), kOk);
  ASSERT_EQ(guest->attach(1, at, 128 * 64 * 4), kOk);
  ASSERT_EQ(guest->transfer(1, {0, 0, 128, 64}, 0), kOk);
  ASSERT_EQ(guest->set_scanout(0, 1, {0, 0, 64, 64}), kOk);
  ASSERT_EQ(guest->set_scanout(1, 1, {64, 0, 64, 64}), kOk);
  const SurfaceId second = surface_of(frontend, 1);
  while (frontend.frames[second].width != 64) ASSERT_TRUE(frontend.receive());
  EXPECT_EQ(pixel(frontend, frontend.frames[second], 0, 0), 64U);
  EXPECT_EQ(guest->unref(1), kOk);
  while (frontend.frames[second].buffer != gui::kNoBuffer) ASSERT_TRUE(frontend.receive());
}

TEST_F(GpuScreens, a_flush_copies_what_several_screens_show_once) {
  FakeFrontend frontend = connect();
  const uint32_t bytes = 128 * 64 * kPixel;
  const GuestAddr at = guest->alloc(bytes);
  paint(at, 128, 64, 0);
  ASSERT_EQ(guest->create_blob(1, bytes, 0, VIRTIO_GPU_BLOB_MEM_GUEST, {{at.value, bytes, 0}}),
            kOk);
  const virtio_gpu_rect all{0, 0, 128, 64};
  ASSERT_EQ(scanout_blob(0, 1, 128, 0, all), kOk);
  ASSERT_EQ(scanout_blob(1, 1, 128, 0, all), kOk);
  EXPECT_EQ(pixels_of_flush(1, all), 128U * 64);
  EXPECT_EQ(pixels_of_flush(1, {8, 8, 4, 2}), 8U);
  // Side by side, and only one of them met.
  ASSERT_EQ(scanout_blob(0, 1, 128, 0, {0, 0, 64, 64}), kOk);
  ASSERT_EQ(scanout_blob(1, 1, 128, 0, {64, 0, 64, 64}), kOk);
  EXPECT_EQ(pixels_of_flush(1, all), 128U * 64);
  EXPECT_EQ(pixels_of_flush(1, {60, 0, 8, 2}), 16U);
  EXPECT_EQ(pixels_of_flush(1, {70, 0, 8, 2}), 16U);
  // Two framebuffers of other shapes in the same memory: 100 wide from the second pixel on.
  ASSERT_EQ(scanout_blob(0, 1, 128, 0, all), kOk);
  ASSERT_EQ(scanout_blob(1, 1, 100, kPixel, {0, 0, 100, 64}), kOk);
  paint(at, 128, 64, 0x1000);
  EXPECT_EQ(pixels_of_flush(1, all), 128U * 64);
  const SurfaceId second = surface_of(frontend, 1);
  while (frontend.frames[second].width != 100) ASSERT_TRUE(frontend.receive());
  EXPECT_EQ(pixel(frontend, frontend.frames[second], 0, 0), 0x1001U);
  EXPECT_EQ(pixel(frontend, frontend.frames[second], 99, 63), 0x1000U + 6400);
  EXPECT_EQ(pixels_of_flush(1, {0, 1, 1, 1}), 129U - 101) << "from pixel 101 to 128";
}

TEST_F(GpuScreens, the_pointer_is_mapped_onto_all_screens) {
  FakeFrontend frontend = connect();
  const SurfaceId first = surface_of(frontend, 0);
  const SurfaceId second = surface_of(frontend, 1);
  const auto move = [&](SurfaceId surface, int32_t x, int32_t y) {
    frontend.send(gui::Type::kMotion, gui::Motion{{}, surface, x, y});
  };
  move(first, 0, 0);
  move(second, 639, 479);
  move(second, 0, 479);
  frontend.send(gui::Type::kKey, gui::Key{{}, first, 30, 1});
  frontend.send(gui::Type::kKey, gui::Key{{}, first, 30, 0});
  frontend.send(gui::Type::kButton, gui::Button{{}, second, 0x110, 1});
  frontend.send(gui::Type::kButton, gui::Button{{}, second, 0x110, 0});
  frontend.send(gui::Type::kWheel, gui::Wheel{{}, second, -2, 1});
  std::vector<std::string> events;
  const auto deadline = deadline_in(FakeTransport::kPatience);
  while (events.size() < 8 && std::chrono::steady_clock::now() < deadline)
    for (auto& event : take_input()) events.push_back(std::move(event));
  EXPECT_THAT(events,
              ElementsAre("motion 0 0", "motion 32767 32767",
                          fmt::format("motion {} 32767", 640 * 32767 / 1279), "key 30 true",
                          "key 30 false", "button 272 true", "button 272 false", "wheel -2 1"));
}

TEST_F(GpuScreens, a_cursor_is_shown_moved_and_hidden) {
  FakeFrontend frontend = connect();
  const GuestAddr at = guest->alloc(64 * 64 * 4);
  paint(at, 64, 64, 7);
  ASSERT_EQ(guest->create_2d(5, 64, 64), kOk);  // Linux's have no alpha in their format
  ASSERT_EQ(guest->attach(5, at, 64 * 64 * 4), kOk);
  ASSERT_EQ(guest->transfer(5, {0, 0, 64, 64}, 0), kOk);
  EXPECT_EQ(cursor(0, 5, 3, 4), 0U);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kCursor));
  const gui::Cursor& shown = frontend.cursors.begin()->second;
  EXPECT_EQ(shown.width, 64U);
  EXPECT_EQ(shown.hot_x, 3U);
  EXPECT_EQ(shown.hot_y, 4U);
  EXPECT_NE(shown.buffer, gui::kNoBuffer);
  EXPECT_EQ(guest->cursor(VIRTIO_GPU_CMD_MOVE_CURSOR, 0, 5), 0U);
  EXPECT_EQ(counter(device->counters().refused), 0U);
  EXPECT_EQ(cursor(0, 0), 0U);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kCursor));
  EXPECT_EQ(frontend.cursors.begin()->second.buffer, gui::kNoBuffer);
}

TEST_F(GpuScreens, cursors_that_break_a_rule_are_refused) {
  ASSERT_EQ(guest->create_2d(5, 64, 64), kOk);
  ASSERT_EQ(guest->create_2d(6, 257, 64), kOk);
  ASSERT_EQ(guest->create_2d(7, 64, 64, VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM), kOk);
  ASSERT_EQ(guest->create_blob(8, 64 * 64 * 4), kOk);
  const uint64_t before = counter(device->counters().refused);
  (void)cursor(2, 5);
  (void)cursor(~0U, 5);
  (void)cursor(0, 99);
  (void)cursor(0, 6);
  (void)cursor(0, 7);
  (void)cursor(0, 8);
  (void)cursor(0, 5, 64, 0);
  (void)cursor(0, 5, 0, ~0U);
  (void)guest->cursor(VIRTIO_GPU_CMD_RESOURCE_UNREF, 0, 5);
  EXPECT_EQ(counter(device->counters().refused), before + 9);
  EXPECT_EQ(guest->unref(5), kOk);
}

TEST_F(GpuScreens, a_cursor_whose_resource_goes_is_hidden) {
  FakeFrontend frontend = connect();
  ASSERT_EQ(guest->create_2d(5, 64, 64), kOk);
  (void)cursor(0, 5);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kCursor));
  EXPECT_EQ(guest->unref(5), kOk);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kCursor));
  EXPECT_EQ(frontend.cursors.begin()->second.buffer, gui::kNoBuffer);
}

}  // namespace
}  // namespace lethe
