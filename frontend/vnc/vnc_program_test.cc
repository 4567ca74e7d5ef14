// lethe-vnc as a program, against a fake VM.
#include <linux/input-event-codes.h>
#include <rfb/keysym.h>
#include <sys/socket.h>

#include "frontend/vnc/vnc_fixture.h"
#include "frontend/vnc/web_gate.h"

namespace lethe::gui {
namespace {

TEST_F(VncProgram, shows_the_screen_byte_by_byte_on_a_private_unix_socket) {
  start_with_client();
  struct stat status{};
  ASSERT_EQ(::stat(socket().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
}

TEST_F(VncProgram, sends_only_what_is_damaged) {
  start_with_client();
  const uint64_t before = client_.pixels_received();
  Picture expected = picture_;
  for (uint32_t y = 10; y < 30; ++y)
    for (uint32_t x = 100; x < 150; ++x) expected.line(y)[x] = 0xABCDEF;
  std::fill_n(memory_.pixels(), picture_.pixels.size(), 0xABCDEFU);
  Frame frame = FakeVm::frame(1, ++frame_, 0, 1, kWidth, kHeight);
  frame.damage_x = 100, frame.damage_y = 10, frame.damage_width = 50, frame.damage_height = 20;
  ASSERT_TRUE(vm_->send(frame, Type::kFrame));
  ASSERT_TRUE(client_.update(true)) << log();
  EXPECT_EQ(client_.picture(), expected);
  EXPECT_EQ(client_.pixels_received() - before, 50U * 20U);
}

TEST_F(VncProgram, follows_a_new_size) {
  start_with_client();
  const Picture larger = pattern(400, 240, 3);
  show(1, larger);
  EXPECT_TRUE(client_.wait_for_picture(larger)) << log();
}

TEST_F(VncProgram, sends_keys_as_a_us_keyboard_types_them) {
  start_with_client();
  ASSERT_TRUE(client_.key('a', true) && client_.key('a', false));
  expect_key(KEY_A, true);
  expect_key(KEY_A, false);
  // As a German keyboard does: '/' with Shift, where the guest's has it without.
  ASSERT_TRUE(client_.key(XK_Shift_L, true) && client_.key('/', true) && client_.key('/', false) &&
              client_.key(XK_Shift_L, false));
  expect_key(KEY_LEFTSHIFT, true);
  expect_key(KEY_LEFTSHIFT, false);
  expect_key(KEY_SLASH, true);
  expect_key(KEY_LEFTSHIFT, true);
  expect_key(KEY_SLASH, false);
  expect_key(KEY_LEFTSHIFT, false);
  // And '@' without Shift.
  ASSERT_TRUE(client_.key('@', true) && client_.key('@', false));
  expect_key(KEY_LEFTSHIFT, true);
  expect_key(KEY_2, true);
  expect_key(KEY_LEFTSHIFT, false);
  expect_key(KEY_2, false);
}

TEST_F(VncProgram, releases_the_keys_of_a_client_that_goes_away) {
  start_with_client();
  ASSERT_TRUE(client_.key(XK_Control_L, true));
  expect_key(KEY_LEFTCTRL, true);
  client_ = {};
  expect_key(KEY_LEFTCTRL, false);
}

TEST_F(VncProgram, releases_keys_and_buttons_of_a_client_that_goes_while_another_stays) {
  start_with_client();
  FakeRfbClient leaves;
  ASSERT_TRUE(leaves.connect_unix(socket()) && leaves.greet());
  ASSERT_TRUE(leaves.key(XK_Control_L, true) && leaves.pointer(17, 23, 1));
  expect_key(KEY_LEFTCTRL, true);
  const auto press = vm_->receive_until<Button>(Type::kButton);
  ASSERT_TRUE(press && press->code == BTN_LEFT && press->down == 1) << vm_->complaint();
  leaves = {};
  expect_key(KEY_LEFTCTRL, false);
  const auto release = vm_->receive_until<Button>(Type::kButton);
  ASSERT_TRUE(release && release->code == BTN_LEFT && release->down == 0) << vm_->complaint();
  ASSERT_TRUE(client_.key('a', true));
  expect_key(KEY_A, true);
}

TEST_F(VncProgram, releases_nothing_when_a_client_goes_that_has_typed_nothing) {
  start_with_client();
  ASSERT_TRUE(client_.key(XK_Control_L, true));
  expect_key(KEY_LEFTCTRL, true);
  FakeRfbClient looks;
  ASSERT_TRUE(looks.connect_unix(socket()) && looks.greet() && looks.update(false));
  looks = {};
  EXPECT_FALSE(vm_->receive_until<Key>(Type::kKey, std::chrono::milliseconds(300)));
  ASSERT_TRUE(client_.key(XK_Control_L, false));
  expect_key(KEY_LEFTCTRL, false);
}

TEST_F(VncProgram, sends_pointer_buttons_and_wheel_to_the_surface) {
  start_with_client();
  ASSERT_TRUE(client_.pointer(17, 23, 0) && client_.pointer(17, 23, 1) &&
              client_.pointer(18, 23, 1) && client_.pointer(18, 23, 0) &&
              client_.pointer(18, 23, 16) && client_.pointer(18, 23, 0));
  const auto motion = vm_->receive_until<Motion>(Type::kMotion);
  ASSERT_TRUE(motion && motion->x == 17 && motion->y == 23) << vm_->complaint();
  const auto press = vm_->receive_until<Button>(Type::kButton);
  ASSERT_TRUE(press && press->code == BTN_LEFT && press->down == 1) << vm_->complaint();
  const auto release = vm_->receive_until<Button>(Type::kButton);
  ASSERT_TRUE(release && release->down == 0) << vm_->complaint();
  const auto wheel = vm_->receive_until<Wheel>(Type::kWheel);
  ASSERT_TRUE(wheel && wheel->vertical == -1) << vm_->complaint();
}

TEST_F(VncProgram, composes_windows_on_one_desktop_and_keys_go_where_was_clicked) {
  start_with_client();
  ASSERT_TRUE(vm_->surface(2, SurfaceKind::kWindow, 50, 40, "a", 100, 60));
  ASSERT_TRUE(vm_->surface(3, SurfaceKind::kWindow, 50, 40, "b", 120, 70));
  show(2, pattern(50, 40, 5));
  show(3, pattern(50, 40, 7));
  Picture expected(640, 480);
  const auto put = [&](const Picture& picture, uint32_t left, uint32_t top) {
    for (uint32_t y = 0; y < picture.height; ++y)
      std::copy_n(picture.line(y), picture.width, expected.line(top + y) + left);
  };
  put(pattern(50, 40, 5), 100, 60);
  put(pattern(50, 40, 7), 120, 70);
  ASSERT_TRUE(client_.wait_for_picture(expected)) << log();
  ASSERT_TRUE(client_.pointer(105, 65, 1) && client_.pointer(105, 65, 0) && client_.key('x', true));
  const auto press = vm_->receive_until<Button>(Type::kButton);
  ASSERT_TRUE(press && press->surface == 2) << vm_->complaint();
  expect_key(KEY_X, true, 2);
  put(pattern(50, 40, 5), 100, 60);
  EXPECT_TRUE(client_.wait_for_picture(expected)) << "the one clicked is above";
}

TEST_F(VncProgram, survives_a_revoked_buffer) {
  start_with_client();
  ASSERT_NO_FATAL_FAILURE(revoke());
  ASSERT_TRUE(client_.wait_for_picture(Picture(kWidth, kHeight))) << log();
  ASSERT_TRUE(client_.key('a', true));
  expect_key(KEY_A, true);
}

TEST_F(VncProgram, survives_hostile_clients) {
  start_with_client();
  FakeRfbClient other;
  ASSERT_TRUE(other.connect_unix(socket()) && other.send_bytes(std::string(4096, '\xFF')));
  EXPECT_TRUE(other.closed());
  ASSERT_TRUE(other.connect_unix(socket()) && other.greet());
  ASSERT_TRUE(other.send_bytes("\xF0garbage"));
  EXPECT_TRUE(other.closed());
  ASSERT_TRUE(client_.cut_text("not for the guest"));
  ASSERT_TRUE(client_.pointer(65535, 65535, 0xFF) && client_.key(0xFFFFFFFF, true));
  ASSERT_TRUE(client_.key('a', true));
  expect_key(KEY_A, true);
  const Picture second = pattern(kWidth, kHeight, 9);
  show(1, second);
  EXPECT_TRUE(client_.wait_for_picture(second)) << log();
}

TEST_F(VncProgram, ends_with_the_vm_and_leaves_no_socket) {
  start_with_client();
  ASSERT_TRUE(vm_->bye(ByeReason::kVmEnded));
  EXPECT_EQ(finish(), 0);
  EXPECT_NE(log().find("the VM has ended"), std::string::npos) << log();
  EXPECT_FALSE(std::filesystem::exists(socket()));
  EXPECT_TRUE(client_.closed());
}

TEST_F(VncProgram, says_once_why_it_was_sent_off) {
  start_with_client();
  ASSERT_TRUE(vm_->bye(ByeReason::kTooSlow));
  EXPECT_EQ(finish(), 1) << log();
  const std::string text = log();
  const size_t said = text.find("lethe-vnc: ");
  ASSERT_NE(said, std::string::npos) << text;
  EXPECT_EQ(text.find("lethe-vnc: ", said + 1), std::string::npos) << text;
}

TEST_F(VncProgram, ends_cleanly_while_a_client_holds_keys_and_buttons) {
  start_with_client();
  ASSERT_TRUE(client_.key(XK_Control_L, true) && client_.key('a', true) &&
              client_.pointer(17, 23, 1));
  expect_key(KEY_LEFTCTRL, true);
  expect_key(KEY_A, true);
  ASSERT_TRUE(vm_->receive_until<Button>(Type::kButton)) << vm_->complaint();
  ASSERT_TRUE(vm_->bye(ByeReason::kVmEnded));
  EXPECT_EQ(finish(), 0) << log();
}

TEST_F(VncProgram, ends_cleanly_by_a_signal_while_a_client_holds_a_key) {
  start_with_client();
  ASSERT_TRUE(client_.key(XK_Control_L, true));
  expect_key(KEY_LEFTCTRL, true);
  ::kill(pid_, SIGTERM);
  EXPECT_EQ(finish(), 0) << log();
}

TEST_F(VncProgram, ends_by_a_signal_and_leaves_no_socket) {
  start_with_client();
  ::kill(pid_, SIGTERM);
  EXPECT_EQ(finish(), 0) << log();
  EXPECT_FALSE(std::filesystem::exists(socket()));
}

TEST_F(VncProgram, wants_the_password_on_a_port) {
  start({"work", "--port", "0", "--password-file", folder_ + "/password"});
  serve();
  ASSERT_TRUE(client_.connect_tcp(port("VNC on 127.0.0.1:"))) << log();
  EXPECT_EQ(client_.offered_security(), 2) << "VNC authentication";
  EXPECT_FALSE(std::filesystem::exists(socket()));
}

TEST_F(VncProgram, serves_its_page_to_browsers_and_websockets_to_its_page_alone) {
  start({"work", "--port", "0", "--web-port", "0", "--password-file", folder_ + "/password"});
  serve();
  const uint16_t web = port("http://127.0.0.1:");
  const std::string host = "Host: 127.0.0.1:" + std::to_string(web) + "\r\n";
  const auto reply = [&](uint16_t to, const std::string& request) {
    FakeRfbClient browser;
    EXPECT_TRUE(browser.connect_tcp(to) && browser.send_bytes(request));
    return browser.receive_some();
  };
  EXPECT_NE(reply(web, "GET / HTTP/1.1\r\n" + host + "\r\n").find("200 OK"), std::string::npos);
  EXPECT_NE(reply(web, "GET /lethe.js HTTP/1.1\r\n" + host + "\r\n").find("text/javascript"),
            std::string::npos);
  EXPECT_NE(reply(web, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").find("403"),
            std::string::npos);
  const std::string upgrade =
      "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
      "Sec-WebSocket-Version: 13\r\n";
  const std::string ours = "Origin: http://127.0.0.1:" + std::to_string(web) + "\r\n\r\n";
  EXPECT_NE(reply(web, "GET /vnc HTTP/1.1\r\n" + host + upgrade + ours).find("101 Switching"),
            std::string::npos);
  EXPECT_NE(reply(web, "GET /vnc HTTP/1.1\r\n" + host + upgrade + "Origin: http://evil\r\n\r\n")
                .find("403"),
            std::string::npos);
  // The library's own WebSocket on the port for VNC would not ask where it comes from.
  FakeRfbClient evil;
  ASSERT_TRUE(evil.connect_tcp(port("VNC on 127.0.0.1:")));
  ASSERT_TRUE(
      evil.send_bytes("GET /vnc HTTP/1.1\r\n" + host + upgrade + "Origin: http://evil\r\n\r\n"));
  EXPECT_TRUE(evil.closed());
}

TEST_F(VncProgram, does_not_run_while_a_browsers_request_is_incomplete) {
  start({"work", "--web-port", "0", "--password-file", folder_ + "/password"});
  serve();
  const uint16_t web = port("http://127.0.0.1:");
  const std::string begin = "GET / HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(web);
  FakeRfbClient browser, ended;
  ASSERT_TRUE(browser.connect_tcp(web) && browser.send_bytes(begin));
  const auto before = time_on_cpu();
  (void)eventually([] { return false; }, std::chrono::milliseconds(1000));
  EXPECT_LT(time_on_cpu() - before, std::chrono::milliseconds(50));
  // Nothing can complete this one, so it is not waited for.
  ASSERT_TRUE(ended.connect_tcp(web) && ended.send_bytes(begin));
  ASSERT_EQ(::shutdown(ended.fd(), SHUT_WR), 0);
  const auto since = std::chrono::steady_clock::now();
  EXPECT_TRUE(ended.closed());
  EXPECT_LT(std::chrono::steady_clock::now() - since, WebGate::kRequestTime / 2);
  for (const char byte : std::string("\r\n\r\n")) {
    (void)eventually([] { return false; }, std::chrono::milliseconds(20));
    ASSERT_TRUE(browser.send_bytes(std::string(1, byte)));
  }
  EXPECT_NE(browser.receive_some().find("200 OK"), std::string::npos);
}

TEST_F(VncProgram, does_not_start_on_a_port_without_a_password) {
  for (const auto& arguments :
       std::vector<std::vector<std::string>>{{"work", "--port", "0"},
                                             {"work", "--port", "99999"},
                                             {"work", "--password-file", folder_ + "/missing"},
                                             {}}) {
    start(arguments);
    EXPECT_EQ(finish(), 2) << log();
  }
  std::ofstream(folder_ + "/password") << "more than eight\n";
  start({"work", "--port", "0", "--password-file", folder_ + "/password"});
  EXPECT_EQ(finish(), 2);
  EXPECT_NE(log().find("1 to 8"), std::string::npos) << log();
  std::ofstream(folder_ + "/password") << "short\n";
  ::chmod((folder_ + "/password").c_str(), 0644);
  start({"work", "--port", "0", "--password-file", folder_ + "/password"});
  EXPECT_EQ(finish(), 2);
  EXPECT_NE(log().find("others may read"), std::string::npos) << log();
}

TEST_F(VncProgram, does_not_run_while_nothing_happens) {
  start_with_client();
  const auto slices = [&] {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/schedstat");
    uint64_t on_cpu = 0, waited = 0, count = 0;
    file >> on_cpu >> waited >> count;
    return count;
  };
  (void)eventually([] { return false; }, std::chrono::milliseconds(300));
  const uint64_t before = slices();
  (void)eventually([] { return false; }, std::chrono::milliseconds(1000));
  EXPECT_LE(slices() - before, 3U);
}

}  // namespace
}  // namespace lethe::gui
