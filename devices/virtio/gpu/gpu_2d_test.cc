// Screens of a stock guest: 2D resources, transfers, scanouts, flushes.
#include "devices/virtio/gpu/gpu_test_util.h"

namespace lethe {
namespace {

class Gpu2d : public GpuTest {
 protected:
  static constexpr uint32_t kSide = 64;
  static constexpr uint32_t kBytes = kSide * kSide * 4;
  // A resource with a picture of the guest's behind it.
  GuestAddr make(uint32_t id, uint32_t tag) {
    const GuestAddr at = guest->alloc(kBytes);
    paint(at, kSide, kSide, tag);
    EXPECT_EQ(guest->create_2d(id, kSide, kSide), kOk);
    EXPECT_EQ(guest->attach(id, at, kBytes), kOk);
    return at;
  }
  static constexpr virtio_gpu_rect kWhole{0, 0, kSide, kSide};
};

TEST_F(Gpu2d, a_screen_is_there_before_the_guest_has_a_driver) {
  FakeFrontend frontend = connect();
  ASSERT_TRUE(frontend.receive_until(gui::Type::kSurface));
  const gui::Surface& screen = frontend.surfaces.begin()->second;
  EXPECT_EQ(screen.kind, static_cast<uint32_t>(gui::SurfaceKind::kScreen));
  EXPECT_EQ(screen.width, 640U);
  EXPECT_EQ(screen.height, 480U);
}

TEST_F(Gpu2d, what_the_guest_flushes_is_seen) {
  FakeFrontend frontend = connect();
  make(1, 0x1000);
  EXPECT_EQ(guest->transfer(1, kWhole, 0), kOk);
  EXPECT_EQ(guest->set_scanout(0, 1, kWhole), kOk);
  EXPECT_EQ(guest->flush(1, kWhole), kOk);
  const auto frame = frame_of(frontend, kSide);
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->format, uint32_t{VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM});
  EXPECT_EQ(pixel(frontend, *frame, 0, 0), 0x1000U);
  EXPECT_EQ(pixel(frontend, *frame, kSide - 1, kSide - 1), 0x1000U + kSide * kSide - 1);
  EXPECT_EQ(frontend.surfaces.begin()->second.width, kSide);  // the guest's mode
}

TEST_F(Gpu2d, only_the_rectangle_is_copied_from_where_offset_says) {
  FakeFrontend frontend = connect();
  make(1, 0x1000);
  EXPECT_EQ(guest->set_scanout(0, 1, kWhole), kOk);
  EXPECT_EQ(guest->transfer(1, {3, 5, 7, 2}, (5 * kSide + 3) * 4), kOk);
  EXPECT_EQ(guest->flush(1, {3, 5, 7, 2}), kOk);
  const auto frame = frame_of(frontend, kSide);
  ASSERT_TRUE(frame);
  EXPECT_EQ(pixel(frontend, *frame, 2, 5), 0U);
  EXPECT_EQ(pixel(frontend, *frame, 3, 5), 0x1000U + 5 * kSide + 3);
  EXPECT_EQ(pixel(frontend, *frame, 9, 6), 0x1000U + 6 * kSide + 9);
  EXPECT_EQ(pixel(frontend, *frame, 10, 6), 0U);
  EXPECT_EQ(pixel(frontend, *frame, 3, 7), 0U);
}

TEST_F(Gpu2d, damage_of_a_flush_is_relative_to_the_scanout) {
  FakeFrontend frontend = connect();
  make(1, 0);
  EXPECT_EQ(guest->set_scanout(0, 1, {16, 16, 32, 32}), kOk);
  auto frame = frame_of(frontend, 32);
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->offset, (16 * kSide + 16) * 4U);
  EXPECT_EQ(frame->stride, kSide * 4);
  EXPECT_EQ(guest->flush(1, {0, 20, 20, 100 - 80}), kOk);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  frame = frontend.frames.begin()->second;
  EXPECT_EQ(frame->damage_x, 0U);
  EXPECT_EQ(frame->damage_y, 4U);
  EXPECT_EQ(frame->damage_width, 4U);
  EXPECT_EQ(frame->damage_height, 20U);
}

TEST_F(Gpu2d, backing_in_pieces_is_one_picture) {
  FakeFrontend frontend = connect();
  const GuestAddr at = guest->alloc(kBytes + 4096);
  paint(at, kSide, kSide, 0x5000);
  std::vector<virtio_gpu_mem_entry> entries;
  uint32_t done = 0;
  for (uint32_t i = 0; done < kBytes; ++i) {
    const uint32_t length = std::min<uint32_t>(kBytes - done, 1 + i * 37 % 901);
    entries.push_back({at.value + done, length, 0});
    done += length;
    if (i % 3 == 0) entries.push_back({at.value, 0, 0});  // empty ones are no pieces
  }
  ASSERT_EQ(guest->create_2d(1, kSide, kSide), kOk);
  ASSERT_EQ(guest->attach(1, entries), kOk);
  ASSERT_EQ(guest->transfer(1, kWhole, 0), kOk);
  ASSERT_EQ(guest->set_scanout(0, 1, kWhole), kOk);
  const auto frame = frame_of(frontend, kSide);
  ASSERT_TRUE(frame);
  for (uint32_t y = 0; y < kSide; ++y)
    for (uint32_t x = 0; x < kSide; ++x)
      ASSERT_EQ(pixel(frontend, *frame, x, y), 0x5000 + y * kSide + x) << x << "," << y;
}

TEST_F(Gpu2d, scattered_pieces_come_in_their_order) {
  FakeFrontend frontend = connect();
  const GuestAddr at = guest->alloc(kBytes);
  paint(at, kSide, kSide, 0x7000);
  std::vector<virtio_gpu_mem_entry> entries;  // lines, last one first
  for (uint32_t y = kSide; y-- > 0;) entries.push_back({at.value + y * kSide * 4, kSide * 4, 0});
  ASSERT_EQ(guest->create_2d(1, kSide, kSide), kOk);
  ASSERT_EQ(guest->attach(1, entries), kOk);
  ASSERT_EQ(guest->transfer(1, {8, 2, 9, 60}, (2 * kSide + 8) * 4), kOk);
  ASSERT_EQ(guest->set_scanout(0, 1, kWhole), kOk);
  const auto frame = frame_of(frontend, kSide);
  ASSERT_TRUE(frame);
  EXPECT_EQ(pixel(frontend, *frame, 8, 2), 0x7000 + (kSide - 3) * kSide + 8);
  EXPECT_EQ(pixel(frontend, *frame, 16, 61), 0x7000 + (kSide - 62) * kSide + 16);
}

TEST_F(Gpu2d, a_frontend_that_comes_later_sees_what_there_is) {
  make(1, 0x1000);
  EXPECT_EQ(guest->transfer(1, kWhole, 0), kOk);
  EXPECT_EQ(guest->set_scanout(0, 1, kWhole), kOk);
  FakeFrontend frontend = connect();
  const auto frame = frame_of(frontend, kSide);
  ASSERT_TRUE(frame);
  EXPECT_EQ(pixel(frontend, *frame, 1, 1), 0x1000U + kSide + 1);
}

TEST_F(Gpu2d, a_scanout_that_is_switched_off_shows_nothing) {
  FakeFrontend frontend = connect();
  make(1, 0);
  EXPECT_EQ(guest->set_scanout(0, 1, kWhole), kOk);
  ASSERT_TRUE(frame_of(frontend, kSide));
  EXPECT_EQ(guest->set_scanout(0, 0, {0, 0, 0, 0}), kOk);
  do ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  while (frontend.frames.begin()->second.buffer != gui::kNoBuffer);
}

TEST_F(Gpu2d, an_answer_has_the_requests_fence_and_context) {
  virtio_gpu_ctrl_hdr request{};
  request.type = VIRTIO_GPU_CMD_GET_DISPLAY_INFO;
  request.flags = VIRTIO_GPU_FLAG_FENCE | VIRTIO_GPU_FLAG_INFO_RING_IDX;
  request.fence_id = 0x1122'3344'5566'7788;
  request.ctx_id = 9;
  request.ring_idx = 3;
  EXPECT_EQ(guest->raw({reinterpret_cast<const uint8_t*>(&request), sizeof request}),
            uint32_t{VIRTIO_GPU_RESP_OK_DISPLAY_INFO});
  const auto answer = guest->answer<virtio_gpu_ctrl_hdr>();
  EXPECT_EQ(answer.flags, request.flags);
  EXPECT_EQ(answer.fence_id, request.fence_id);
  EXPECT_EQ(answer.ctx_id, 9U);
  EXPECT_EQ(answer.ring_idx, 3);
  EXPECT_EQ(guest->written(), sizeof(virtio_gpu_resp_display_info));
  request.type = 0x9999;  // an error, too
  EXPECT_EQ(guest->raw({reinterpret_cast<const uint8_t*>(&request), sizeof request}),
            uint32_t{VIRTIO_GPU_RESP_ERR_UNSPEC});
  EXPECT_EQ(guest->answer<virtio_gpu_ctrl_hdr>().fence_id, request.fence_id);
}

TEST_F(Gpu2d, every_format_of_the_specification_can_be_shown) {
  uint32_t id = 1;
  for (const uint32_t format : {1, 2, 3, 4, 67, 68, 121, 134}) {
    EXPECT_EQ(guest->create_2d(id, kSide, kSide, format), kOk) << format;
    EXPECT_EQ(guest->set_scanout(0, id++, kWhole), kOk) << format;
  }
  for (const uint32_t format : {0U, 5U, 66U, 122U, ~0U})
    EXPECT_EQ(guest->create_2d(99, kSide, kSide, format), kBad) << format;
}

}  // namespace
}  // namespace lethe
