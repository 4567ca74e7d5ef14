#include "frontend/vnc/desktop.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>
#include <linux/virtio_gpu.h>
#include <rfb/keysym.h>

#include "frontend/vnc/keysyms.h"
#include "frontend/vnc/web_request.h"

namespace lethe::gui {
namespace {

class DesktopTest : public testing::Test {
 protected:
  void show(uint64_t surface, uint32_t width, uint32_t height, Pixel colour, Rect damage = {}) {
    const std::vector<Pixel> pixels(size_t{width} * height, colour);
    if (damage.empty()) damage = {0, 0, width, height};
    desktop_.set_frame(surface, {.pixels = reinterpret_cast<const std::byte*>(pixels.data()),
                                 .format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM,
                                 .stride = width * 4,
                                 .width = width,
                                 .height = height,
                                 .damage = damage});
  }
  void screen(uint64_t id, uint32_t output = 0) {
    desktop_.set_surface({.id = id, .kind = SurfaceKind::kScreen, .output = output, .title = {}});
  }
  void window(uint64_t id, int32_t x, int32_t y, uint64_t parent = 0,
              uint32_t flags = kSurfaceVisible) {
    desktop_.set_surface({.id = id,
                          .parent = parent,
                          .kind = SurfaceKind::kWindow,
                          .flags = flags,
                          .x = x,
                          .y = y,
                          .title = {}});
  }
  // The colour at a place, drawn alone, as 0xRRGGBB.
  Pixel at(uint32_t x, uint32_t y) const {
    uint32_t pixel = 0x12345678;
    desktop_.draw({x, y, 1, 1}, &pixel, 1);
    return (pixel & 0xFF) << 16 | (pixel & 0xFF00) | pixel >> 16;
  }
  Desktop desktop_{Desktop::Show::kAuto, 0};
};

TEST_F(DesktopTest, is_the_screen_while_there_are_no_windows) {
  EXPECT_EQ(desktop_.take_damage(), (Rect{0, 0, 640, 480}));
  screen(1);
  screen(2, 1);
  show(1, 100, 50, 0x112233);
  show(2, 200, 80, 0x445566);
  EXPECT_EQ(desktop_.width(), 100U);
  EXPECT_EQ(desktop_.take_damage(), (Rect{0, 0, 100, 50}));
  EXPECT_EQ(at(99, 49), 0x112233U);
  show(1, 100, 50, 0x778899, {10, 20, 5, 6});
  EXPECT_EQ(desktop_.take_damage(), (Rect{10, 20, 5, 6}));
  EXPECT_EQ(at(12, 22), 0x778899U);
  EXPECT_EQ(at(9, 22), 0x112233U);
  EXPECT_TRUE(desktop_.take_damage().empty());
  EXPECT_EQ(desktop_.at(7, 8)->surface, 1U);
}

TEST_F(DesktopTest, puts_windows_where_they_are_and_later_ones_above) {
  screen(1);
  show(1, 1000, 900, 0x010101);
  window(2, 10, 10);
  window(3, 50, 10);
  EXPECT_EQ(desktop_.screen(), 1U) << "nothing is shown in the windows yet";
  show(2, 100, 100, 0x222222);
  show(3, 700, 100, 0x333333);
  EXPECT_FALSE(desktop_.screen());
  EXPECT_EQ(desktop_.width(), 750U);
  EXPECT_EQ(desktop_.height(), 480U);
  (void)desktop_.take_damage();
  EXPECT_EQ(at(10, 10), 0x222222U);
  EXPECT_EQ(at(60, 10), 0x333333U);
  EXPECT_EQ(at(5, 5), 0U);
  const auto hit = desktop_.at(60, 30);
  ASSERT_TRUE(hit);
  EXPECT_TRUE(hit->surface == 3 && hit->x == 10 && hit->y == 20);
  EXPECT_FALSE(desktop_.at(5, 5));
  desktop_.raise(2);
  EXPECT_EQ(desktop_.take_damage(), (Rect{10, 10, 100, 100}));
  EXPECT_EQ(at(60, 10), 0x222222U);
  EXPECT_EQ(desktop_.at(60, 30)->surface, 2U);
}

TEST_F(DesktopTest, damages_only_what_a_window_changes_or_uncovers) {
  window(2, 10, 10);
  show(2, 100, 100, 0x222222);
  (void)desktop_.take_damage();
  show(2, 100, 100, 0x333333, {5, 6, 7, 8});
  EXPECT_EQ(desktop_.take_damage(), (Rect{15, 16, 7, 8}));
  window(2, 20, 10);
  EXPECT_EQ(desktop_.take_damage(), (Rect{10, 10, 110, 100}));
  desktop_.remove_surface(2);
  EXPECT_EQ(desktop_.take_damage(), (Rect{0, 0, 640, 480})) << "no window is left";
}

TEST_F(DesktopTest, keeps_dialogs_above_their_window_and_survives_circles_of_parents) {
  window(2, 0, 0);
  window(3, 0, 0, 2);
  window(4, 0, 0);
  for (const uint64_t id : {2, 3, 4}) show(id, 50, 50, static_cast<Pixel>(id));
  desktop_.raise(2);
  EXPECT_EQ(at(0, 0), 3U);
  window(2, 0, 0, 3);
  desktop_.raise(4);
  EXPECT_EQ(at(0, 0), 4U);
  desktop_.raise(3);
  EXPECT_EQ(at(0, 0), 3U);
}

TEST_F(DesktopTest, clips_windows_at_extreme_places) {
  window(2, -2147483647 - 1, 2147483647);
  show(2, 16384, 2, 0x222222);
  window(3, -20, -20);
  show(3, 30, 30, 0x333333);
  EXPECT_LE(desktop_.width(), 8192U);
  EXPECT_LE(desktop_.height(), 8192U);
  EXPECT_EQ(at(9, 9), 0x333333U);
  EXPECT_EQ(at(10, 10), 0U);
  EXPECT_EQ(desktop_.at(0, 0)->x, 20);
  const auto far = desktop_.inside(2, 0, 0);
  EXPECT_TRUE(far.x == 0x7FFF && far.y == -0x8000);
}

TEST_F(DesktopTest, hidden_windows_are_not_there) {
  window(2, 0, 0, 0, 0);
  show(2, 50, 50, 0x222222);
  EXPECT_FALSE(desktop_.at(1, 1));
  window(2, 0, 0, 0, kSurfaceVisible);
  EXPECT_TRUE(desktop_.at(1, 1));
}

TEST(Keysyms, map_to_keys_of_a_us_keyboard) {
  const auto a = key_of_keysym('A');
  ASSERT_TRUE(a && a->character && a->stroke.shift);
  EXPECT_EQ(a->stroke.code, static_cast<uint32_t>(KEY_A));
  EXPECT_EQ(key_of_keysym(XK_Return)->stroke.code, static_cast<uint32_t>(KEY_ENTER));
  EXPECT_EQ(key_of_keysym(XK_F12)->stroke.code, static_cast<uint32_t>(KEY_F12));
  EXPECT_FALSE(key_of_keysym(XK_Shift_L)->character);
  EXPECT_FALSE(key_of_keysym(0xE4));
  EXPECT_FALSE(key_of_keysym(0xFFFFFFFF));
}

WebRequest::Kind kind_of(const std::string& head) {
  const auto request = parse_request(head, 5901);
  EXPECT_TRUE(request) << head;
  return request ? request->kind : WebRequest::Kind::kRefused;
}

TEST(WebRequests, are_files_or_websockets_of_our_own_page) {
  using Kind = WebRequest::Kind;
  const std::string host = "Host: localhost:5901\r\n";
  EXPECT_EQ(kind_of("GET / HTTP/1.1\r\n" + host + "\r\n"), Kind::kFile);
  EXPECT_EQ(parse_request("GET /core/rfb.js?v=1 HTTP/1.1\r\n" + host + "\r\n", 5901)->path,
            "/core/rfb.js");
  const std::string upgrade = "GET /vnc HTTP/1.1\r\n" + host + "Upgrade: WebSocket\r\n";
  EXPECT_EQ(kind_of(upgrade + "\r\n"), Kind::kWebSocket);
  EXPECT_EQ(kind_of(upgrade + "Origin: http://localhost:5901\r\n\r\n"), Kind::kWebSocket);
  EXPECT_EQ(kind_of(upgrade + "Origin: http://evil.example\r\n\r\n"), Kind::kRefused);
  EXPECT_EQ(kind_of(upgrade + "Origin: http://localhost:5901\r\nORIGIN: null\r\n\r\n"),
            Kind::kRefused);
  EXPECT_EQ(kind_of("GET / HTTP/1.1\r\nHost: evil.example:5901\r\n\r\n"), Kind::kRefused);
  EXPECT_EQ(kind_of("GET / HTTP/1.1\r\nHost: localhost:80\r\n\r\n"), Kind::kRefused);
  EXPECT_EQ(kind_of("GET / HTTP/1.1\r\n\r\n"), Kind::kRefused);
}

TEST(WebRequests, that_leave_the_folder_or_are_malformed_are_refused) {
  using Kind = WebRequest::Kind;
  const std::string rest = " HTTP/1.1\r\nHost: 127.0.0.1:5901\r\n\r\n";
  for (const char* path :
       {"/../x", "/core/../../x", "//etc", "/%2e%2e/x", "/core/.hidden", "x", "/a\\b", "/a b"})
    EXPECT_EQ(kind_of(std::string("GET ") + path + rest), Kind::kRefused) << path;
  EXPECT_EQ(kind_of("POST /" + rest), Kind::kRefused);
  EXPECT_EQ(kind_of("GET /\r\n\r\n"), Kind::kRefused);
  EXPECT_FALSE(parse_request("GET / HTTP/1.1\r\nHost: local", 5901)) << "not whole yet";
  EXPECT_EQ(kind_of("GET /" + std::string(kRequestBytesMax, 'a')), Kind::kRefused);
}

}  // namespace
}  // namespace lethe::gui
