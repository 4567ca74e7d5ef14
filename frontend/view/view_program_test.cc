// lethe-view as a program on an X server of its own, against a fake VM.
#include <linux/input-event-codes.h>
#include <linux/virtio_gpu.h>
#include <sys/resource.h>

#include "frontend/view/view_fixture.h"

namespace lethe::gui {
namespace {

TEST_F(ViewProgram, shows_the_screen_byte_by_byte_and_follows_damage) {
  start_with_screen();
  EXPECT_EQ(window_.width, kWidth);
  EXPECT_EQ(window_.height, kHeight);
  // Only what is damaged may change on the host.
  Picture expected = picture_;
  for (uint32_t y = 10; y < 30; ++y)
    for (uint32_t x = 100; x < 150; ++x) expected.line(y)[x] = 0xABCDEF;
  std::fill_n(memory_.pixels(), picture_.pixels.size(), 0xABCDEFU);
  Frame frame = FakeVm::frame(1, ++frame_, 0, 1, kWidth, kHeight);
  frame.damage_x = 100, frame.damage_y = 10, frame.damage_width = 50, frame.damage_height = 20;
  ASSERT_TRUE(vm_->send(frame, Type::kFrame));
  EXPECT_TRUE(x_->wait_for_picture(window_, expected)) << log();
}

TEST_F(ViewProgram, shows_all_eight_formats) {
  start_with_screen();
  for (const uint32_t format :
       {VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM, VIRTIO_GPU_FORMAT_A8R8G8B8_UNORM,
        VIRTIO_GPU_FORMAT_X8R8G8B8_UNORM, VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM,
        VIRTIO_GPU_FORMAT_X8B8G8R8_UNORM, VIRTIO_GPU_FORMAT_A8B8G8R8_UNORM,
        VIRTIO_GPU_FORMAT_R8G8B8X8_UNORM, VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM}) {
    std::memcpy(memory_.pixels(), picture_.pixels.data(), picture_.pixels.size() * sizeof(Pixel));
    Picture expected(kWidth, kHeight);
    for (uint32_t y = 0; y < kHeight; ++y)
      convert_line(reinterpret_cast<const std::byte*>(memory_.pixels() + y * kWidth), format,
                   expected.line(y), kWidth);
    Frame frame = FakeVm::frame(1, ++frame_, 0, 1, kWidth, kHeight);
    frame.format = format;
    ASSERT_TRUE(vm_->send(frame, Type::kFrame));
    EXPECT_TRUE(x_->wait_for_picture(window_, expected)) << format;
  }
}

TEST_F(ViewProgram, sends_keys_by_their_place_and_releases_them_with_the_focus) {
  start_with_screen();
  take_focus();
  x_->key(XK_a, true);
  expect_key(KEY_A, true);
  x_->key(XK_a, false);
  expect_key(KEY_A, false);
  x_->key(XK_Shift_L, true);
  expect_key(KEY_LEFTSHIFT, true);
  XServer::Window elsewhere;
  elsewhere.id = 1;  // PointerRoot
  x_->focus(elsewhere);
  expect_key(KEY_LEFTSHIFT, false);
  x_->key(XK_Shift_L, false);
}

TEST_F(ViewProgram, keeps_its_own_key_combinations_from_the_guest) {
  start_with_screen();
  take_focus();
  press_with_ctrl_alt(XK_g);
  // Released as soon as it was clear whose they are; in the order of their codes.
  expect_key(KEY_LEFTCTRL, true);
  expect_key(KEY_LEFTALT, true);
  expect_key(KEY_LEFTCTRL, false);
  expect_key(KEY_LEFTALT, false);
  EXPECT_TRUE(x_->wait_for_window("keyboard grabbed, Ctrl+Alt+G frees it")) << log();
  EXPECT_TRUE(eventually([&] { return x_->keyboard_grabbed(); })) << log();
  press_with_ctrl_alt(XK_g);
  EXPECT_TRUE(eventually([&] { return !x_->keyboard_grabbed(); })) << log();
  EXPECT_TRUE(eventually([&] {
    for (const auto& each : x_->windows())
      if (each.title == "[work]") return true;
    return false;
  }));
  press_with_ctrl_alt(XK_q);
  EXPECT_EQ(finish(), 0) << log();
}

TEST_F(ViewProgram, sends_the_pointer_buttons_and_wheel) {
  start_with_screen();
  x_->move_pointer(window_.x + 17, window_.y + 23);
  std::optional<Motion> motion;
  ASSERT_TRUE(eventually([&] {
    motion = vm_->receive_until<Motion>(Type::kMotion, std::chrono::milliseconds(200));
    return motion && motion->x == 17 && motion->y == 23;
  })) << log();
  x_->button(3, true);
  const auto press = vm_->receive_until<Button>(Type::kButton);
  ASSERT_TRUE(press && press->code == BTN_RIGHT && press->down == 1) << vm_->complaint();
  x_->button(3, false);
  const auto release = vm_->receive_until<Button>(Type::kButton);
  ASSERT_TRUE(release && release->code == BTN_RIGHT && release->down == 0) << vm_->complaint();
  x_->button(4, true);
  x_->button(4, false);
  const auto wheel = vm_->receive_until<Wheel>(Type::kWheel);
  ASSERT_TRUE(wheel && wheel->vertical == 1 && wheel->horizontal == 0) << vm_->complaint();
}

TEST_F(ViewProgram, tells_the_guest_of_a_new_size_and_follows_the_guests) {
  start_with_screen();
  x_->resize(window_, 400, 300);
  const auto configure = vm_->receive_until<Configure>(Type::kConfigure);
  ASSERT_TRUE(configure) << vm_->complaint();
  EXPECT_EQ(configure->width, 400U);
  EXPECT_EQ(configure->height, 300U);
  ASSERT_TRUE(vm_->surface(1, SurfaceKind::kScreen, 240, 160));
  show(1, pattern(240, 160, 3));
  ASSERT_TRUE(eventually([&] {
    window_ = *x_->wait_for_window("[work]");
    return window_.width == 240 && window_.height == 160;
  }));
  EXPECT_TRUE(x_->wait_for_picture(window_, pattern(240, 160, 3))) << log();
}

TEST_F(ViewProgram, scales_by_whole_numbers_or_to_fit_by_option_and_key) {
  start_with_screen({"work", "--scale", "integer"});
  take_focus();
  x_->resize(window_, 660, 420);
  ASSERT_TRUE(vm_->receive_until<Configure>(Type::kConfigure)) << vm_->complaint();
  ASSERT_TRUE(eventually([&] {
    window_ = *x_->wait_for_window("[work]");
    return window_.width == 660 && window_.height == 420;
  }));
  // This guest keeps its size: twice that is in the middle, black around it.
  Picture twice(660, 420);
  for (uint32_t y = 0; y < 2 * kHeight; ++y)
    for (uint32_t x = 0; x < 2 * kWidth; ++x)
      twice.line(10 + y)[10 + x] = picture_.at(x / 2, y / 2);
  EXPECT_TRUE(x_->wait_for_picture(window_, twice)) << log();
  press_with_ctrl_alt(XK_s);  // to fit: 660 pixels wide
  EXPECT_TRUE(eventually([&] {
    const auto now = x_->screenshot(window_);
    return now && now->at(5, 210) != 0;
  })) << log();
  press_with_ctrl_alt(XK_s);
  EXPECT_TRUE(x_->wait_for_picture(window_, twice)) << log();
}

TEST_F(ViewProgram, shows_guest_windows_with_title_place_popup_and_close) {
  start_with_screen();
  ASSERT_TRUE(vm_->surface(2, SurfaceKind::kWindow, 100, 80, "xterm", 400, 300,
                           kSurfaceVisible | kSurfaceResizable));
  show(2, pattern(100, 80, 5));
  const auto window = x_->wait_for_window("[work] xterm");
  ASSERT_TRUE(window) << log();
  EXPECT_EQ(window->x, 400);
  EXPECT_EQ(window->y, 300);
  EXPECT_FALSE(window->override_redirect);
  EXPECT_TRUE(x_->wait_for_picture(*window, pattern(100, 80, 5))) << log();

  ASSERT_TRUE(vm_->surface(3, SurfaceKind::kWindow, 40, 30, "menu", 410, 320,
                           kSurfaceVisible | kSurfacePopup, 2));
  show(3, pattern(40, 30, 7));
  const auto menu = x_->wait_for_window("[work] menu");
  ASSERT_TRUE(menu) << log();
  EXPECT_TRUE(menu->override_redirect);
  EXPECT_EQ(menu->x, 410);
  EXPECT_EQ(menu->y, 320);
  EXPECT_TRUE(x_->wait_for_picture(*menu, pattern(40, 30, 7))) << log();
  ASSERT_TRUE(vm_->send(SurfaceGone{.header = {}, .surface = 3}, Type::kSurfaceGone));
  EXPECT_TRUE(eventually([&] {
    for (const auto& each : x_->windows())
      if (each.title == "[work] menu") return false;
    return true;
  }));

  x_->ask_to_close(*window);
  const auto close = vm_->receive_until<Close>(Type::kClose);
  ASSERT_TRUE(close) << vm_->complaint();
  EXPECT_EQ(close->surface, 2U);
  ASSERT_TRUE(vm_->surface(2, SurfaceKind::kWindow, 100, 80, "vi", 450, 310));
  const auto moved = x_->wait_for_window("[work] vi");
  ASSERT_TRUE(moved) << log();
  EXPECT_TRUE(eventually([&] {
    const auto now = x_->wait_for_window("[work] vi");
    return now && now->x == 450 && now->y == 310;
  }));
}

TEST_F(ViewProgram, survives_a_thousand_windows_that_come_and_go) {
  start_with_screen();
  for (uint64_t id = 2; id < 1002; ++id) {
    ASSERT_TRUE(vm_->surface(id, SurfaceKind::kWindow, 20, 10, "blink", 500, 300));
    ASSERT_TRUE(vm_->send(FakeVm::frame(id, 1, 0, 1, 20, 10), Type::kFrame));
    ASSERT_TRUE(vm_->send(SurfaceGone{.header = {}, .surface = id}, Type::kSurfaceGone));
    if (id % 10 == 0) {
      ASSERT_TRUE(vm_->receive_until<DoneReading>(Type::kDoneReading)) << log();
    }
  }
  show(1, pattern(kWidth, kHeight, 11));
  EXPECT_TRUE(x_->wait_for_picture(window_, pattern(kWidth, kHeight, 11))) << log();
  EXPECT_EQ(log(), "");
}

TEST_F(ViewProgram, lets_a_dialog_belong_to_its_parent_of_now) {
  start_with_screen();
  const auto dialog = [&](uint64_t parent) {
    EXPECT_TRUE(vm_->surface(4, SurfaceKind::kWindow, 40, 30, "dialog", 450, 350,
                             kSurfaceVisible | kSurfaceDialog, parent));
  };
  for (const uint64_t id : {2, 3}) {
    ASSERT_TRUE(vm_->surface(id, SurfaceKind::kWindow, 100, 80, id == 2 ? "first" : "second"));
    show(id, pattern(100, 80, 5));
  }
  const auto first = x_->wait_for_window("first"), second = x_->wait_for_window("second");
  ASSERT_TRUE(first && second) << log();
  const auto belongs_to = [&](const XServer::Window& parent) {
    return eventually([&] {
      const auto now = x_->wait_for_window("dialog");
      return now && now->transient_for == parent.id;
    });
  };
  dialog(2);
  show(4, pattern(40, 30, 7));
  EXPECT_TRUE(belongs_to(*first)) << log();
  dialog(3);
  EXPECT_TRUE(belongs_to(*second)) << log();
}

TEST_F(ViewProgram, survives_windows_that_cannot_be_made) {
  // Without X and OpenGL, whose libraries end the process when memory is short.
  video_driver_ = "dummy";
  start_and_greet({"work"});
  std::ifstream statm("/proc/" + std::to_string(pid_) + "/statm");
  rlim_t pages = 0;
  statm >> pages;
  const rlim_t bytes = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + (64 << 20);
  const rlimit limit{bytes, bytes};
  ASSERT_EQ(::prlimit(pid_, RLIMIT_AS, &limit, nullptr), 0);
  for (const uint64_t id : {2, 3})
    ASSERT_TRUE(vm_->surface(id, SurfaceKind::kWindow, kSidePixelsMax, kSidePixelsMax, "large"));
  show(1, picture_);
  const std::string text = log();
  const size_t told = text.find("is not shown");
  ASSERT_NE(told, std::string::npos) << text;
  EXPECT_EQ(text.find("is not shown", told + 1), std::string::npos) << "told once: " << text;
}

TEST_F(ViewProgram, gives_a_popup_without_a_shown_window_the_vms_name_and_a_border) {
  start_with_screen();
  const auto popup = [&](uint64_t id, const char* title, uint64_t parent) {
    EXPECT_TRUE(vm_->surface(id, SurfaceKind::kWindow, 40, 30, title, 10, 20,
                             kSurfaceVisible | kSurfacePopup, parent));
    show(id, pattern(40, 30, 7));
  };
  popup(2, "alone", 0);
  popup(3, "of the screen", 1);
  popup(4, "of none", 77);
  for (const char* title : {"alone", "of the screen", "of none"}) {
    const auto window = x_->wait_for_window(std::string("[work] ") + title);
    ASSERT_TRUE(window) << title << log();
    EXPECT_FALSE(window->override_redirect) << title;
  }
  // A menu's menu belongs to the menu's window, and is seen with it.
  const auto owner = [&](uint32_t flags) {
    EXPECT_TRUE(vm_->surface(6, SurfaceKind::kWindow, 100, 80, "owner", 400, 300, flags));
  };
  const auto seen = [&](const std::string& title) {
    const auto all = x_->windows();
    return std::any_of(all.begin(), all.end(), [&](const auto& each) {
      return each.viewable && each.override_redirect && each.title == "[work] " + title;
    });
  };
  owner(kSurfaceVisible);
  popup(7, "menu", 6);
  popup(8, "submenu", 7);
  EXPECT_FALSE(seen("menu") || seen("submenu")) << "their window has no picture yet";
  show(6, pattern(100, 80, 5));
  EXPECT_TRUE(eventually([&] { return seen("menu") && seen("submenu"); })) << log();
  owner(0);
  EXPECT_TRUE(eventually([&] { return !seen("menu") && !seen("submenu"); }));
  owner(kSurfaceVisible);
  EXPECT_TRUE(eventually([&] { return seen("menu") && seen("submenu"); })) << log();
  // Now in a circle.
  ASSERT_TRUE(vm_->surface(7, SurfaceKind::kWindow, 40, 30, "menu", 10, 20,
                           kSurfaceVisible | kSurfacePopup, 8));
  EXPECT_TRUE(eventually([&] { return !seen("menu") && !seen("submenu"); }));
}

TEST_F(ViewProgram, survives_the_vms_end_and_says_so_in_title_picture_and_log) {
  start_with_screen();
  ASSERT_TRUE(vm_->bye(ByeReason::kVmEnded));
  vm_->close();
  ASSERT_TRUE(x_->wait_for_window("[work] - ended")) << log();
  EXPECT_NE(log().find("work: the VM has ended"), std::string::npos) << log();
  ASSERT_TRUE(eventually([&] { return x_->screenshot(window_) != picture_; }));
  const Picture now = x_->screenshot(window_).value();
  for (uint32_t x = 0; x < kWidth; ++x) {
    EXPECT_EQ(now.at(x, 0), picture_.at(x, 0)) << "the last picture stays";
  }
  EXPECT_NE(std::count(now.pixels.begin(), now.pixels.end(), 0xFFDC78U), 0) << "no text in it";
  x_->ask_to_close(window_);
  EXPECT_EQ(finish(), 0) << log();
}

TEST_F(ViewProgram, reconnects_to_a_vm_that_was_started_again) {
  start_with_screen();
  take_focus();
  vm_->close();
  ASSERT_TRUE(x_->wait_for_window("[work] - ended")) << log();
  x_->key(XK_r, true);
  x_->key(XK_r, false);
  ASSERT_TRUE(vm_->accept()) << log();
  ASSERT_TRUE(vm_->receive<Hello>(Type::kHello)) << vm_->complaint();
  ASSERT_TRUE(vm_->welcome("work"));
  ASSERT_TRUE(vm_->surface(9, SurfaceKind::kScreen, kWidth, kHeight));
  ASSERT_TRUE(vm_->buffer(0, 2, memory_));
  const Picture second = pattern(kWidth, kHeight, 9);
  std::memcpy(memory_.pixels(), second.pixels.data(), second.pixels.size() * sizeof(Pixel));
  ASSERT_TRUE(vm_->send(FakeVm::frame(9, 1, 0, 2, kWidth, kHeight), Type::kFrame));
  ASSERT_TRUE(eventually([&] {
    const auto window = x_->wait_for_window("[work]");
    return window && x_->screenshot(*window) == second;
  })) << log();
}

TEST_F(ViewProgram, survives_a_revoked_buffer) {
  start_with_screen();
  ASSERT_NO_FATAL_FAILURE(revoke());
  EXPECT_TRUE(x_->wait_for_picture(window_, Picture(kWidth, kHeight))) << log();
}

TEST_F(ViewProgram, does_not_run_while_nothing_happens) {
  start_with_screen();
  const auto ticks = [&] {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/schedstat");
    uint64_t on_cpu = 0, waited = 0, slices = 0;
    file >> on_cpu >> waited >> slices;
    return slices;
  };
  (void)eventually([] { return false; }, std::chrono::milliseconds(300));  // settles
  const uint64_t before = ticks();
  (void)eventually([] { return false; }, std::chrono::milliseconds(1000));
  EXPECT_LE(ticks() - before, 5U);
}

TEST_F(ViewProgram, says_so_when_there_is_no_display) {
  start({"work"}, "");
  EXPECT_EQ(finish(), 1);
  EXPECT_NE(log().find("no display"), std::string::npos) << log();
  EXPECT_NE(log().find("lethe-vnc"), std::string::npos) << log();
}

TEST_F(ViewProgram, exits_with_1_without_the_vm_and_with_2_on_bad_usage) {
  start({"other"}, x_->name());
  EXPECT_EQ(finish(), 1);
  EXPECT_NE(log().find("'other' does not run"), std::string::npos) << log();
  start({"work", "--scale", "big"}, x_->name());
  EXPECT_EQ(finish(), 2);
  start({"--help"}, "");
  EXPECT_EQ(finish(), 0);
}

}  // namespace
}  // namespace lethe::gui
