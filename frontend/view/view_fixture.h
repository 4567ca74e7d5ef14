// For tests: lethe-view as a program on an X server of its own, against a fake VM.
#pragma once

#include <X11/keysym.h>

#include <memory>

#include "frontend/program_fixture.h"
#include "frontend/view/fake_x_server.h"

namespace lethe::gui {

class ViewProgram : public FrontendProgram {
 protected:
  static void SetUpTestSuite() { x_ = std::make_unique<XServer>(); }
  static void TearDownTestSuite() { x_.reset(); }

  void SetUp() override {
    ASSERT_TRUE(x_->running()) << "Xvfb does not start";
    FrontendProgram::SetUp();
    // The pointer stays out of the windows, and no key down, whatever the last test did.
    x_->move_pointer(1000, 750);
  }
  void start(std::vector<std::string> arguments, const std::string& display) {
    spawn(LETHE_VIEW_PROGRAM, std::move(arguments), [&] { prepare(display); });
  }
  void prepare(const std::string& display) const {
    ::unsetenv("WAYLAND_DISPLAY");
    // Not what an OpenGL driver does to pixels; the thread sanitizer does not understand those.
    ::setenv("SDL_RENDER_DRIVER", "software", 1);
    ::setenv("SDL_FRAMEBUFFER_ACCELERATION", "0", 1);
    // Under AddressSanitizer: what SDL, X and D-Bus keep to their end is not ours to free.
    // Memory may be short, there and under ThreadSanitizer, as it may without them.
    ::setenv("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1", 1);
    const char* tsan = std::getenv("TSAN_OPTIONS");
    const std::string tsan_options = tsan == nullptr ? "" : std::string(tsan) + ":";
    ::setenv("TSAN_OPTIONS", (tsan_options + "allocator_may_return_null=1").c_str(), 1);
    ::unsetenv("SDL_VIDEODRIVER");
    if (!video_driver_.empty()) ::setenv("SDL_VIDEODRIVER", video_driver_.c_str(), 1);
    if (display.empty())
      ::unsetenv("DISPLAY");
    else
      ::setenv("DISPLAY", display.c_str(), 1);
  }
  void start_and_greet(std::vector<std::string> arguments) {
    start(std::move(arguments), x_->name());
    serve();
  }
  // It is to be seen, too.
  void start_with_screen(std::vector<std::string> arguments = {"work"}) {
    start_and_greet(std::move(arguments));
    if (HasFatalFailure()) return;
    const auto window = x_->wait_for_window("[work]");
    ASSERT_TRUE(window) << log();
    window_ = *window;
    ASSERT_TRUE(x_->wait_for_picture(window_, picture_)) << log();
  }
  void take_focus() {
    x_->focus(window_);
    ASSERT_TRUE(eventually([&] {
      x_->focus(window_);
      const auto focus = vm_->receive_until<Focus>(Type::kFocus, std::chrono::milliseconds(200));
      return focused_ = focused_ || (focus && focus->focused == 1);
    })) << log();
  }
  static void press_with_ctrl_alt(unsigned key) {
    for (const unsigned each : {unsigned{XK_Control_L}, unsigned{XK_Alt_L}, key})
      x_->key(each, true);
    for (const unsigned each : {key, unsigned{XK_Alt_L}, unsigned{XK_Control_L}})
      x_->key(each, false);
  }

  static inline std::unique_ptr<XServer> x_;
  std::string video_driver_;  // SDL's; empty: its own choice
  XServer::Window window_;
  bool focused_ = false;
};

}  // namespace lethe::gui
