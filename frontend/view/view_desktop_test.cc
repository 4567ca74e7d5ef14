// lethe-view as a program of a desktop: under a window manager, and with a pointer over it.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "frontend/view/view_fixture.h"

namespace lethe::gui {
namespace {

// openbox, on a server of its own; ends with the object.
class WindowManager {
 public:
  explicit WindowManager(const XServer& x) {
    x_pid = ::fork();
    if (x_pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::setenv("DISPLAY", x.name().c_str(), 1);
      ::execlp("openbox", "openbox", "--sm-disable", static_cast<char*>(nullptr));
      std::_Exit(127);
    }
    x_runs = eventually([&] { return x.managed(); });
  }
  ~WindowManager() {
    ::kill(x_pid, SIGTERM);
    ::waitpid(x_pid, nullptr, 0);
  }
  WindowManager(const WindowManager&) = delete;
  WindowManager& operator=(const WindowManager&) = delete;
  [[nodiscard]] bool runs() const { return x_runs; }

 private:
  pid_t x_pid = -1;
  bool x_runs = false;
};

class ViewDesktop : public ViewProgram {
 protected:
  static constexpr uint32_t kScreenWidth = 1024, kScreenHeight = 768;

  void SetUp() override {
    ViewProgram::SetUp();
    if (HasFatalFailure()) return;
    manager_.emplace(*x_);
    ASSERT_TRUE(manager_->runs()) << "openbox does not start";
  }
  // The program ends before the manager does.
  void TearDown() override {
    ViewProgram::TearDown();
    manager_.reset();
  }
  bool wait_for_size(uint32_t width, uint32_t height) {
    return eventually([&] {
      window_ = *x_->wait_for_window("[work]");
      return window_.width == width && window_.height == height;
    });
  }
  // The window covers the screen, the guest is told so, and follows.
  void expect_full_screen() {
    ASSERT_TRUE(wait_for_size(kScreenWidth, kScreenHeight)) << log();
    EXPECT_TRUE(eventually([&] { return x_->place_of(window_) == std::pair(0, 0); }));
    std::optional<Configure> configure;
    ASSERT_TRUE(eventually([&] {
      configure = vm_->receive_until<Configure>(Type::kConfigure, std::chrono::milliseconds(200));
      return configure && configure->width == kScreenWidth && configure->height == kScreenHeight;
    })) << log();
    memory_ = std::make_unique<FakeBuffer>(uint64_t{kScreenWidth} * kScreenHeight * sizeof(Pixel));
    ASSERT_TRUE(vm_->buffer(1, 2, *memory_));
    ASSERT_TRUE(vm_->surface(1, SurfaceKind::kScreen, kScreenWidth, kScreenHeight));
    const Picture large = pattern(kScreenWidth, kScreenHeight, 5);
    std::memcpy(memory_->pixels(), large.pixels.data(), large.pixels.size() * sizeof(Pixel));
    ASSERT_TRUE(
        vm_->send(FakeVm::frame(1, ++frame_, 1, 2, kScreenWidth, kScreenHeight), Type::kFrame));
    EXPECT_TRUE(x_->wait_for_picture(window_, large)) << log();
  }

  std::optional<WindowManager> manager_;
  std::unique_ptr<FakeBuffer> memory_;
};

TEST_F(ViewDesktop, fills_the_screen_by_key_and_comes_back) {
  start_with_screen();
  ASSERT_NE(x_->place_of(window_), std::pair(0, 0)) << "it has no frame to lose";
  take_focus();
  press_with_ctrl_alt(XK_f);
  expect_full_screen();
  if (HasFatalFailure()) return;
  press_with_ctrl_alt(XK_f);
  EXPECT_TRUE(eventually([&] {
    window_ = *x_->wait_for_window("[work]");
    return window_.width < kScreenWidth && x_->place_of(window_) != std::pair(0, 0);
  })) << log();
}

TEST_F(ViewDesktop, starts_in_full_screen_if_asked_to) {
  start_and_greet({"work", "--full-screen"});
  if (HasFatalFailure()) return;
  expect_full_screen();
}

TEST_F(ViewDesktop, the_window_managers_close_button_ends_the_look_at_a_screen) {
  start_with_screen();
  x_->ask_to_close(window_);
  EXPECT_EQ(finish(), 0) << log();
}

class ViewCursor : public ViewProgram {
 protected:
  static constexpr uint32_t kSize = 16;
  void SetUp() override {
    ViewProgram::SetUp();
    if (!HasFatalFailure()) start_with_screen();
  }
  // Opaque, so that premultiplication changes nothing.
  static XServer::CursorImage image(uint32_t seed) {
    XServer::CursorImage cursor{
        .width = kSize, .height = kSize, .hot_x = 3, .hot_y = 9, .pixels = {}};
    for (uint32_t i = 0; i < kSize * kSize; ++i)
      cursor.pixels.push_back(0xFF000000 | ((i * 0x030507 * seed) & 0xFFFFFF));
    return cursor;
  }
  void send(const XServer::CursorImage& cursor) {
    ASSERT_TRUE(vm_->buffer(slot_, slot_ + 1, memory_));
    std::memcpy(memory_.pixels(), cursor.pixels.data(), cursor.pixels.size() * 4);
    Cursor message{};
    message.surface = 1;
    message.buffer = slot_;
    message.generation = slot_ + 1;
    message.width = cursor.width;
    message.height = cursor.height;
    message.hot_x = cursor.hot_x;
    message.hot_y = cursor.hot_y;
    ASSERT_TRUE(vm_->send(message, Type::kCursor));
    ++slot_;
  }
  // SDL may put the image into a larger one, of which the rest is transparent.
  static bool shows(const XServer::CursorImage& shown, const XServer::CursorImage& sent) {
    if (shown.hot_x != sent.hot_x || shown.hot_y != sent.hot_y || shown.width < sent.width ||
        shown.height < sent.height)
      return false;
    for (uint32_t y = 0; y < shown.height; ++y)
      for (uint32_t x = 0; x < shown.width; ++x) {
        const uint32_t pixel = shown.pixels[y * shown.width + x];
        const bool inside = x < sent.width && y < sent.height;
        if (pixel != (inside ? sent.pixels[y * sent.width + x] : 0)) return false;
      }
    return true;
  }
  bool wait_for(const XServer::CursorImage& cursor) {
    return eventually([&] { return shows(x_->cursor(), cursor); });
  }
  FakeBuffer memory_{64 << 10};
  uint32_t slot_ = 1;
};

TEST_F(ViewCursor, is_the_guests_over_its_window_pixel_by_pixel_and_no_one_elses) {
  const XServer::CursorImage outside = x_->cursor();
  send(image(1));
  x_->move_pointer(window_.x + 50, window_.y + 50);
  EXPECT_TRUE(wait_for(image(1))) << log();
  send(image(2));  // while the pointer is there
  EXPECT_TRUE(wait_for(image(2))) << log();
  x_->move_pointer(1000, 750);
  EXPECT_TRUE(eventually([&] { return x_->cursor() == outside; })) << log();
  x_->move_pointer(window_.x + 50, window_.y + 50);
  EXPECT_TRUE(wait_for(image(2))) << log();
}

TEST_F(ViewCursor, is_invisible_when_the_guest_hides_it) {
  send(image(1));
  x_->move_pointer(window_.x + 50, window_.y + 50);
  ASSERT_TRUE(wait_for(image(1))) << log();
  Cursor hidden{};
  hidden.surface = 1;
  hidden.buffer = kNoBuffer;
  ASSERT_TRUE(vm_->send(hidden, Type::kCursor));
  EXPECT_TRUE(eventually([&] {
    for (const uint32_t pixel : x_->cursor().pixels)
      if (pixel != 0) return false;
    return true;
  })) << log();
}

}  // namespace
}  // namespace lethe::gui
