#include "frontend/client.h"

#include <sys/resource.h>

#include "frontend/client_fixture.h"

namespace lethe::gui {
namespace {

TEST_F(ClientTest, says_hello_with_magic_version_and_name) {
  EXPECT_EQ(hello_->magic, kMagic);
  EXPECT_EQ(hello_->version, kVersion);
  EXPECT_EQ(hello_->flags, 0U);
  EXPECT_STREQ(hello_->name, "test");
}

TEST_F(ClientTest, tells_of_surfaces_and_their_changes) {
  ASSERT_TRUE(vm_.welcome("work"));
  ASSERT_TRUE(vm_.surface(7, SurfaceKind::kWindow, 30, 20, "xterm", -5, 6,
                          kSurfaceVisible | kSurfaceResizable));
  ASSERT_TRUE(vm_.surface(7, SurfaceKind::kWindow, 40, 20, "vi\x01\xff", -5, 6));
  ASSERT_TRUE(vm_.send(SurfaceGone{.header = {}, .surface = 7}, Type::kSurfaceGone));
  process();
  EXPECT_EQ(client_->vm_name(), "work");
  ASSERT_EQ(recorder_.surfaces.size(), 2U);
  EXPECT_EQ(recorder_.surfaces[0].title, "xterm");
  EXPECT_EQ(recorder_.surfaces[0].x, -5);
  EXPECT_EQ(recorder_.surfaces[0].flags, kSurfaceVisible | kSurfaceResizable);
  EXPECT_EQ(recorder_.surfaces[1].width, 40U);
  EXPECT_EQ(recorder_.surfaces[1].title, "vi??");
  EXPECT_EQ(recorder_.gone, std::vector<uint64_t>{7});
  EXPECT_TRUE(client_->surfaces().empty());
}

TEST_F(ClientTest, shows_a_frame_from_the_mapping_then_says_done_reading) {
  greet();
  memory_.pixels()[1] = 0x11223344;
  ASSERT_TRUE(vm_.buffer(5, 9, memory_));
  Frame frame = FakeVm::frame(1, 3, 5, 9, 3, 2);
  frame.stride = 16;
  frame.offset = 4;
  frame.damage_x = 1;
  frame.damage_width = 2;
  ASSERT_TRUE(vm_.send(frame, Type::kFrame));
  const size_t before = open_descriptors();
  process();
  ASSERT_EQ(recorder_.frames.size(), 1U);
  EXPECT_EQ(recorder_.first_pixels[0], 0x11223344U);
  EXPECT_EQ(recorder_.frames[0].stride, 16U);
  EXPECT_EQ(recorder_.frames[0].damage, (Rect{1, 0, 2, 2}));
  const auto done = vm_.receive<DoneReading>(Type::kDoneReading);
  ASSERT_TRUE(done) << vm_.complaint();
  EXPECT_EQ(done->surface, 1U);
  EXPECT_EQ(done->frame, 3U);
  EXPECT_EQ(open_descriptors(), before) << "the buffer's descriptor is kept";
}

TEST_F(ClientTest, answers_buffer_gone_with_unmapped_of_its_generation) {
  greet();
  ASSERT_TRUE(vm_.buffer(5, 9, memory_));
  ASSERT_TRUE(vm_.send(BufferGone{.header = {}, .buffer = 5, .revoked = 0, .generation = 9},
                       Type::kBufferGone));
  ASSERT_TRUE(vm_.buffer(5, 10, memory_));
  process();
  const auto unmapped = vm_.receive<Unmapped>(Type::kUnmapped);
  ASSERT_TRUE(unmapped) << vm_.complaint();
  EXPECT_EQ(unmapped->buffer, 5U);
  EXPECT_EQ(unmapped->generation, 9U);
  EXPECT_EQ(client_->buffers(), 1U);
  ASSERT_TRUE(vm_.send(FakeVm::frame(1, 1, 5, 9, 4, 2), Type::kFrame));
  expect_refused("no buffer 5 of generation 9");
}

TEST_F(ClientTest, reads_a_revoked_buffer_as_black_and_goes_on) {
  greet();
  FakeBuffer pages(1 << 20);
  pages.pixels()[0] = 0xFFFFFFFF;
  ASSERT_TRUE(vm_.buffer(5, 9, pages));
  process();
  pages.revoke();
  ASSERT_TRUE(vm_.send(FakeVm::frame(1, 1, 5, 9, 4, 2), Type::kFrame));
  ASSERT_TRUE(vm_.send(BufferGone{.header = {}, .buffer = 5, .revoked = 1, .generation = 9},
                       Type::kBufferGone));
  process();
  ASSERT_EQ(recorder_.first_pixels.size(), 1U);
  EXPECT_EQ(recorder_.first_pixels[0], 0U);
  EXPECT_TRUE(vm_.receive<DoneReading>(Type::kDoneReading)) << vm_.complaint();
  EXPECT_TRUE(vm_.receive<Unmapped>(Type::kUnmapped)) << vm_.complaint();
}

TEST_F(ClientTest, gives_a_buffer_back_when_out_of_descriptors_and_shows_the_next_frame_whole) {
  greet();
  process();
  ASSERT_TRUE(vm_.buffer(5, 9, memory_));
  ASSERT_TRUE(vm_.send(FakeVm::frame(1, 1, 5, 9, 4, 2), Type::kFrame));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{.rlim_cur = 0, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto result = client_->process(recorder_);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_TRUE(result) << result.error().text;
  EXPECT_TRUE(recorder_.frames.empty());
  const auto unmapped = vm_.receive<Unmapped>(Type::kUnmapped);
  ASSERT_TRUE(unmapped) << vm_.complaint();
  EXPECT_EQ(unmapped->generation, 9U);
  EXPECT_TRUE(vm_.receive<DoneReading>(Type::kDoneReading)) << vm_.complaint();
  EXPECT_EQ(client_->counters().lost, 1U);

  ASSERT_TRUE(vm_.buffer(5, 9, memory_));
  Frame frame = FakeVm::frame(1, 2, 5, 9, 4, 2);
  frame.damage_width = frame.damage_height = 1;
  ASSERT_TRUE(vm_.send(frame, Type::kFrame));
  process();
  ASSERT_EQ(recorder_.frames.size(), 1U);
  EXPECT_EQ(recorder_.frames[0].damage, (Rect{0, 0, 4, 2}));
}

TEST_F(ClientTest, shows_nothing_for_a_frame_without_a_buffer) {
  greet();
  Frame frame{};
  frame.surface = 1;
  frame.frame = 1;
  frame.buffer = kNoBuffer;
  ASSERT_TRUE(vm_.send(frame, Type::kFrame));
  process();
  ASSERT_EQ(recorder_.frames.size(), 1U);
  EXPECT_EQ(recorder_.frames[0].pixels, nullptr);
}

TEST_F(ClientTest, shows_and_hides_the_cursor) {
  greet();
  memory_.pixels()[0] = 0xFF00FF00;
  ASSERT_TRUE(vm_.buffer(5, 9, memory_));
  Cursor cursor{};
  cursor.surface = 1;
  cursor.buffer = 5;
  cursor.width = cursor.height = 4;
  cursor.hot_x = 3;
  cursor.hot_y = 4000;
  cursor.generation = 9;
  ASSERT_TRUE(vm_.send(cursor, Type::kCursor));
  cursor = {};
  cursor.surface = 1;
  cursor.buffer = kNoBuffer;
  ASSERT_TRUE(vm_.send(cursor, Type::kCursor));
  process();
  ASSERT_EQ(recorder_.cursors.size(), 2U);
  EXPECT_EQ(recorder_.cursors[0].hot_x, 3U);
  EXPECT_EQ(recorder_.cursors[0].hot_y, 3U) << "moved into the picture";
  EXPECT_EQ(recorder_.cursors[1].pixels, nullptr);
}

TEST_F(ClientTest, ends_with_the_reason_of_the_vms_bye) {
  greet();
  ASSERT_TRUE(vm_.bye(ByeReason::kTooMany));
  vm_.close();
  expect_refused("too many frontends");
}

TEST_F(ClientTest, reads_the_bye_although_the_socket_is_closed_already) {
  greet();
  process();
  ASSERT_TRUE(vm_.bye(ByeReason::kBadMessage));
  vm_.close();
  client_->send_key(1, 30, true);
  expect_refused("malformed");
}

TEST_F(ClientTest, ends_when_the_vm_dies_without_a_goodbye) {
  greet();
  vm_.close();
  expect_refused("without a goodbye");
}

TEST_F(ClientTest, sends_input_as_it_is) {
  greet();
  process();
  client_->send_key(1, 30, true);
  client_->send_motion(1, -3, 4);
  client_->send_button(1, 0x110, true);
  client_->send_wheel(1, 500, -1);
  client_->send_focus(1, true);
  client_->send_configure(1, 1, 2, 0, 99999);
  client_->send_close(1);
  process();
  const auto key = vm_.receive<Key>(Type::kKey);
  ASSERT_TRUE(key && key->code == 30 && key->down == 1 && key->surface == 1);
  const auto motion = vm_.receive<Motion>(Type::kMotion);
  ASSERT_TRUE(motion && motion->x == -3 && motion->y == 4);
  const auto button = vm_.receive<Button>(Type::kButton);
  ASSERT_TRUE(button && button->code == 0x110 && button->down == 1);
  const auto wheel = vm_.receive<Wheel>(Type::kWheel);
  ASSERT_TRUE(wheel && wheel->vertical == 100 && wheel->horizontal == -1);
  const auto focus = vm_.receive<Focus>(Type::kFocus);
  ASSERT_TRUE(focus && focus->focused == 1);
  const auto configure = vm_.receive<Configure>(Type::kConfigure);
  ASSERT_TRUE(configure && configure->width == 1 && configure->height == kSidePixelsMax);
  const auto close = vm_.receive<Close>(Type::kClose);
  ASSERT_TRUE(close && close->surface == 1);
}

TEST_F(ClientTest, replaces_motion_and_keeps_all_keys_while_the_vm_does_not_read) {
  greet();
  process();
  for (int i = 0; i < 3000; ++i) {
    client_->send_motion(1, i, 0);
    if (i % 10 == 9) client_->send_key(1, 30, i % 20 == 9);
    if (i % 50 == 49) process();
  }
  EXPECT_GT(client_->counters().inputs_replaced, 0U);
  EXPECT_EQ(client_->counters().inputs_dropped, 0U);
  int keys = 0;
  int last_x = -1;
  while (keys < 300) {
    process();
    const auto packet = vm_.receive_raw();
    ASSERT_FALSE(packet.empty());
    MessageHeader header;
    std::memcpy(&header, packet.data(), sizeof header);
    if (header.type == static_cast<uint32_t>(Type::kKey)) {
      Key key;
      std::memcpy(&key, packet.data(), sizeof key);
      EXPECT_EQ(key.down, keys % 2 == 0 ? 1U : 0U);
      ++keys;
    } else {
      Motion motion;
      std::memcpy(&motion, packet.data(), sizeof motion);
      EXPECT_GT(motion.x, last_x);
      last_x = motion.x;
    }
  }
  EXPECT_EQ(last_x, 2999);
}

TEST_F(ClientTest, drops_input_at_the_limit_while_the_vm_does_not_read) {
  greet();
  process();
  for (size_t i = 0; i < Client::kInputsMax + 1000; ++i) client_->send_key(1, 30, true);
  EXPECT_EQ(client_->counters().inputs_dropped, 1000U);
}

}  // namespace
}  // namespace lethe::gui
