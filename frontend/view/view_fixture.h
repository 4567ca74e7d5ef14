// For tests: lethe-view as a program on an X server of its own, against a fake VM.
#pragma once

#include <X11/keysym.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

#include "base/test_util.h"
#include "frontend/fake_vm.h"
#include "frontend/view/fake_x_server.h"

namespace lethe::gui {

inline Picture pattern(uint32_t width, uint32_t height, uint32_t seed = 1) {
  Picture picture(width, height);
  for (uint32_t i = 0; i < picture.pixels.size(); ++i)
    picture.pixels[i] = (i * 0x010307 * seed + seed) & 0xFFFFFF;
  return picture;
}

class ViewProgram : public testing::Test {
 protected:
  static void SetUpTestSuite() { x_ = std::make_unique<XServer>(); }
  static void TearDownTestSuite() { x_.reset(); }

  void SetUp() override {
    ASSERT_TRUE(x_->running()) << "Xvfb does not start";
    char name[] = "/tmp/lethe-view-test-XXXXXX";
    folder_ = ::mkdtemp(name);
    std::filesystem::create_directories(folder_ + "/lethe/work");
    vm_.emplace(folder_ + "/lethe/work/gui.sock");
    // The pointer stays out of the windows, and no key down, whatever the last test did.
    x_->move_pointer(1000, 750);
  }
  void TearDown() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    std::filesystem::remove_all(folder_);
  }

  void start(std::vector<std::string> arguments, const std::string& display) {
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::setenv("XDG_RUNTIME_DIR", folder_.c_str(), 1);
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
    const int log = ::open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(log, 1);
    ::dup2(log, 2);
    std::vector<char*> argv{const_cast<char*>(LETHE_VIEW_PROGRAM)};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(LETHE_VIEW_PROGRAM, argv.data());
    std::_Exit(127);
  }
  // Its exit code, or -1 if it does not end in time.
  int finish() {
    int status = 0;
    if (!eventually([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; })) return -1;
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string log() const {
    std::ifstream file(folder_ + "/log");
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  // lethe-view, welcomed, with one screen of kWidth x kHeight that shows picture_.
  void start_and_greet(std::vector<std::string> arguments) {
    start(std::move(arguments), x_->name());
    ASSERT_TRUE(vm_->accept()) << log();
    ASSERT_TRUE(vm_->receive<Hello>(Type::kHello)) << vm_->complaint();
    ASSERT_TRUE(vm_->welcome("work"));
    ASSERT_TRUE(vm_->surface(1, SurfaceKind::kScreen, kWidth, kHeight));
    ASSERT_TRUE(vm_->buffer(0, 1, memory_));
    show(1, picture_);
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
  void show(uint64_t surface, const Picture& picture) {
    std::memcpy(memory_.pixels(), picture.pixels.data(), picture.pixels.size() * sizeof(Pixel));
    ASSERT_TRUE(vm_->send(FakeVm::frame(surface, ++frame_, 0, 1, picture.width, picture.height),
                          Type::kFrame));
    ASSERT_TRUE(vm_->receive_until<DoneReading>(Type::kDoneReading)) << log();
  }
  void take_focus() {
    x_->focus(window_);
    ASSERT_TRUE(eventually([&] {
      x_->focus(window_);
      const auto focus = vm_->receive_until<Focus>(Type::kFocus, std::chrono::milliseconds(200));
      return focused_ = focused_ || (focus && focus->focused == 1);
    })) << log();
  }
  void expect_key(uint32_t code, bool down) {
    const auto key = vm_->receive_until<Key>(Type::kKey);
    ASSERT_TRUE(key) << vm_->complaint();
    EXPECT_EQ(key->code, code);
    EXPECT_EQ(key->down, down ? 1U : 0U);
    EXPECT_EQ(key->surface, 1U);
  }

  static void press_with_ctrl_alt(unsigned key) {
    for (const unsigned each : {unsigned{XK_Control_L}, unsigned{XK_Alt_L}, key})
      x_->key(each, true);
    for (const unsigned each : {key, unsigned{XK_Alt_L}, unsigned{XK_Control_L}})
      x_->key(each, false);
  }

  static constexpr uint32_t kWidth = 320, kHeight = 200;
  static inline std::unique_ptr<XServer> x_;
  std::string folder_;
  std::string video_driver_;  // SDL's; empty: its own choice
  std::optional<FakeVm> vm_;
  FakeBuffer memory_{1 << 20};
  Picture picture_ = pattern(kWidth, kHeight);
  XServer::Window window_;
  uint64_t frame_ = 0;
  bool focused_ = false;
  pid_t pid_ = -1;
};
}  // namespace lethe::gui
