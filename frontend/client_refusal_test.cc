// What a VM may not send.
#include "frontend/client_fixture.h"

namespace lethe::gui {
namespace {

using ClientRefusalTest = ClientTest;

TEST_F(ClientRefusalTest, refuses_a_message_without_a_header) {
  ASSERT_TRUE(vm_.send_raw("abc", 3));
  expect_refused("message of 3 bytes");
}

TEST_F(ClientRefusalTest, refuses_a_size_that_lies) {
  MessageHeader header{static_cast<uint32_t>(Type::kSurfaceGone), 999};
  ASSERT_TRUE(vm_.send_raw(&header, sizeof header));
  expect_refused("8 bytes, but it says 999");
}

TEST_F(ClientRefusalTest, refuses_a_truncated_message) {
  MessageHeader header{static_cast<uint32_t>(Type::kSurface), 8};
  ASSERT_TRUE(vm_.send_raw(&header, sizeof header));
  expect_refused("8 bytes, not 312");
}

TEST_F(ClientRefusalTest, refuses_an_oversized_message) {
  const std::vector<std::byte> bytes(kMessageBytesMax + 1);
  ASSERT_TRUE(vm_.send_raw(bytes.data(), bytes.size()));
  expect_refused("more than 512 bytes");
}

TEST_F(ClientRefusalTest, refuses_an_unknown_type) {
  MessageHeader header{99, 8};
  ASSERT_TRUE(vm_.send_raw(&header, sizeof header));
  expect_refused("type 99");
}

TEST_F(ClientRefusalTest, refuses_a_frontends_own_message) {
  ASSERT_TRUE(vm_.send(Close{.header = {}, .surface = 1}, Type::kClose));
  expect_refused("sends no such message");
}

TEST_F(ClientRefusalTest, refuses_another_magic_and_another_version) {
  Welcome welcome{};
  welcome.magic = kMagic;
  welcome.version = kVersion + 1;
  ASSERT_TRUE(vm_.send(welcome, Type::kWelcome));
  expect_refused("version 2 is not ours");
  welcome.magic = 1;
  ASSERT_TRUE(vm_.send(welcome, Type::kWelcome));
  expect_refused("no GUI channel");
}

TEST_F(ClientRefusalTest, refuses_a_vm_that_does_not_say_welcome_first) {
  ASSERT_TRUE(vm_.surface(1, SurfaceKind::kScreen, 4, 2));
  expect_refused("Welcome first");
}

TEST_F(ClientRefusalTest, refuses_a_second_welcome) {
  greet();
  ASSERT_TRUE(vm_.welcome());
  expect_refused("came twice");
}

TEST_F(ClientRefusalTest, refuses_a_name_without_an_end) {
  Welcome welcome{};
  welcome.magic = kMagic;
  welcome.version = kVersion;
  std::memset(welcome.vm_name, 'x', sizeof welcome.vm_name);
  ASSERT_TRUE(vm_.send(welcome, Type::kWelcome));
  expect_refused("no end");
}

TEST_F(ClientRefusalTest, refuses_a_buffer_without_a_descriptor) {
  expect_message_refused(
      Buffer{.header = {}, .buffer = 6, .reserved = 0, .generation = 1, .bytes = 64}, Type::kBuffer,
      "no descriptor");
}

TEST_F(ClientRefusalTest, refuses_and_closes_two_descriptors_and_a_hundred) {
  greet();
  process();
  const size_t before = open_descriptors();
  const std::vector<int> many(100, memory_.fd());
  const Buffer buffer{.header = {}, .buffer = 6, .reserved = 0, .generation = 1, .bytes = 64};
  ASSERT_TRUE(vm_.send(buffer, Type::kBuffer, {many.data(), 2}));
  expect_refused("2 descriptors");
  ASSERT_TRUE(vm_.send(buffer, Type::kBuffer, many));
  expect_refused("4 descriptors");
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(ClientRefusalTest, refuses_and_closes_a_descriptor_with_another_message) {
  greet();
  process();
  const size_t before = open_descriptors();
  const int fd = memory_.fd();
  ASSERT_TRUE(vm_.send(SurfaceGone{.header = {}, .surface = 1}, Type::kSurfaceGone, {&fd, 1}));
  expect_refused("1 descriptors");
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(ClientRefusalTest, refuses_a_buffer_that_is_no_memfd_or_has_another_size) {
  greet();
  const UniqueFd null(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  const int fd = null.get();
  Buffer buffer{.header = {}, .buffer = 6, .reserved = 0, .generation = 1, .bytes = 64};
  ASSERT_TRUE(vm_.send(buffer, Type::kBuffer, {&fd, 1}));
  expect_refused("no memfd");
  buffer.bytes = 65;
  const int memory = memory_.fd();
  ASSERT_TRUE(vm_.send(buffer, Type::kBuffer, {&memory, 1}));
  expect_refused("64 bytes, not 65");
}

TEST_F(ClientRefusalTest, refuses_a_buffer_in_a_slot_that_is_in_use) {
  greet();
  ASSERT_TRUE(vm_.buffer(5, 9, memory_));
  ASSERT_TRUE(vm_.buffer(5, 10, memory_));
  expect_refused("slot 5 is in use");
}

TEST_F(ClientRefusalTest, refuses_a_buffer_slot_beyond_the_table) {
  greet();
  ASSERT_TRUE(vm_.buffer(kBuffersMax, 1, memory_));
  expect_refused("buffer 65536");
}

TEST_F(ClientRefusalTest, refuses_the_end_of_an_unknown_buffer_or_surface) {
  expect_message_refused(BufferGone{.header = {}, .buffer = 5, .revoked = 0, .generation = 8},
                         Type::kBufferGone, "no buffer 5 of generation 8");
  ASSERT_TRUE(vm_.send(SurfaceGone{.header = {}, .surface = 2}, Type::kSurfaceGone));
  expect_refused("no surface 2");
}

TEST_F(ClientRefusalTest, refuses_more_surfaces_than_the_limit) {
  ASSERT_TRUE(vm_.welcome());
  for (uint64_t id = 1; id <= kSurfacesMax; ++id) {
    ASSERT_TRUE(vm_.surface(id, SurfaceKind::kWindow, 1, 1));
    if (id % 32 == 0) process();
  }
  ASSERT_TRUE(vm_.surface(kSurfacesMax + 1, SurfaceKind::kWindow, 1, 1));
  expect_refused("too many surfaces");
}

struct BadFrame {
  const char* why;
  void (*change)(Frame&);
};

// Each of these fields alone is wrong.
TEST_F(ClientRefusalTest, refuses_frames_that_reach_outside_of_their_buffer) {
  greet();
  ASSERT_TRUE(vm_.buffer(5, 9, memory_));
  process();
  const BadFrame bad[] = {
      {"no surface 2", [](Frame& f) { f.surface = 2; }},
      {"0 is no surface", [](Frame& f) { f.surface = 0; }},
      {"no buffer 6", [](Frame& f) { f.buffer = 6; }},
      {"buffer 65536", [](Frame& f) { f.buffer = kBuffersMax; }},
      {"generation 8", [](Frame& f) { f.generation = 8; }},
      {"unknown format 5", [](Frame& f) { f.format = 5; }},
      {"size 0x2", [](Frame& f) { f.width = 0; }},
      {"size 16385x2", [](Frame& f) { f.width = 16385; }},
      {"size 4x4294967295", [](Frame& f) { f.height = 0xFFFFFFFF; }},
      {"stride 15", [](Frame& f) { f.stride = 15; }},
      {"stride 4294967295", [](Frame& f) { f.stride = 0xFFFFFFFF; }},
      {"of a buffer of 64", [](Frame& f) { f.stride = 49; }},
      {"of a buffer of 64", [](Frame& f) { f.offset = 33; }},
      {"offset 18446744073709551615", [](Frame& f) { f.offset = ~0ULL; }},
      {"damage 4x2+1+0", [](Frame& f) { f.damage_x = 1; }},
      {"damage 4x4294967295", [](Frame& f) { f.damage_height = 0xFFFFFFFF; }},
      {"damage 0x2", [](Frame& f) { f.damage_width = 0; }},
      {"reserved", [](Frame& f) { f.reserved = 1; }},
  };
  uint64_t number = 0;
  for (const BadFrame& one : bad) {
    Frame frame = FakeVm::frame(1, ++number, 5, 9, 4, 2);
    one.change(frame);
    ASSERT_TRUE(vm_.send(frame, Type::kFrame));
    expect_refused(one.why);
  }
  EXPECT_TRUE(recorder_.frames.empty());
}

TEST_F(ClientRefusalTest, refuses_frames_that_do_not_count_up) {
  greet();
  ASSERT_TRUE(vm_.buffer(5, 9, memory_));
  ASSERT_TRUE(vm_.send(FakeVm::frame(1, 3, 5, 9, 4, 2), Type::kFrame));
  ASSERT_TRUE(vm_.send(FakeVm::frame(1, 3, 5, 9, 4, 2), Type::kFrame));
  expect_refused("frame 3 after 3");
}

TEST_F(ClientRefusalTest, refuses_surfaces_with_fields_out_of_range) {
  struct Bad {
    const char* why;
    void (*change)(Surface&);
  };
  const Bad bad[] = {
      {"0 is no surface", [](Surface& s) { s.surface = 0; }},
      {"own parent", [](Surface& s) { s.parent = 3; }},
      {"unknown kind 2", [](Surface& s) { s.kind = 2; }},
      {"flags 0x10", [](Surface& s) { s.flags = 0x10; }},
      {"size 0x1", [](Surface& s) { s.width = 0; }},
      {"size 1x16385", [](Surface& s) { s.height = 16385; }},
      {"output 16", [](Surface& s) { s.output = 16; }},
      {"reserved", [](Surface& s) { s.reserved = 1; }},
      {"no end", [](Surface& s) { std::memset(s.title, 'x', sizeof s.title); }},
  };
  ASSERT_TRUE(vm_.welcome());
  for (const Bad& one : bad) {
    Surface surface{};
    surface.surface = 3;
    surface.kind = 1;
    surface.width = surface.height = 1;
    one.change(surface);
    ASSERT_TRUE(vm_.send(surface, Type::kSurface));
    expect_refused(one.why);
  }
  EXPECT_TRUE(recorder_.surfaces.empty());
}

TEST_F(ClientRefusalTest, refuses_cursors_that_reach_outside_of_their_buffer) {
  struct Bad {
    const char* why;
    void (*change)(Cursor&);
  };
  const Bad bad[] = {
      {"no surface 2", [](Cursor& c) { c.surface = 2; }},
      {"no buffer 5 of generation 1", [](Cursor& c) { c.generation = 1; }},
      {"size 257x4", [](Cursor& c) { c.width = 257; }},
      {"size 4x0", [](Cursor& c) { c.height = 0; }},
      {"of a buffer of 64", [](Cursor& c) { c.offset = 4; }},
      {"of a buffer of 64", [](Cursor& c) { c.width = c.height = 256; }},
  };
  greet();
  ASSERT_TRUE(vm_.buffer(5, 9, memory_));
  for (const Bad& one : bad) {
    Cursor cursor{};
    cursor.surface = 1;
    cursor.buffer = 5;
    cursor.width = cursor.height = 4;
    cursor.generation = 9;
    one.change(cursor);
    ASSERT_TRUE(vm_.send(cursor, Type::kCursor));
    expect_refused(one.why);
  }
  EXPECT_TRUE(recorder_.cursors.empty());
}

}  // namespace
}  // namespace lethe::gui
