// lethe-shot as a program, against a fake VM.
#include <gtest/gtest.h>
#include <linux/input-event-codes.h>
#include <linux/virtio_gpu.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "frontend/fake_vm.h"
#include "frontend/shot/draw_text.h"
#include "frontend/shot/png_file.h"

namespace lethe::gui {
namespace {

class ShotProgram : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/lethe-shot-test-XXXXXX";
    folder_ = ::mkdtemp(name);
    std::filesystem::create_directories(folder_ + "/lethe/work");
    vm_.emplace(folder_ + "/lethe/work/gui.sock");
  }
  void TearDown() override {
    if (running_.joinable()) running_.join();
    std::filesystem::remove_all(folder_);
  }

  // Runs in the background; finish() returns the exit code, text_ has what it printed.
  void start(const std::string& arguments) {
    running_ = std::thread([this, arguments] {
      const std::string command = "cd " + folder_ + " && XDG_RUNTIME_DIR=" + folder_ +
                                  " timeout 30 " + LETHE_SHOT_PROGRAM + " " + arguments + " 2>&1";
      const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"),
                                                       [](FILE*) { return 0; });
      std::array<char, 4096> part;
      while (const size_t got = std::fread(part.data(), 1, part.size(), pipe.get()))
        text_.append(part.data(), got);
      status_ = ::pclose(pipe.get());
    });
  }
  int finish() {
    running_.join();
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1;
  }
  // The frontend says hello, and gets a screen of kWidth x kHeight and a window.
  void serve() {
    ASSERT_TRUE(vm_->accept());
    ASSERT_TRUE(vm_->receive<Hello>(Type::kHello)) << vm_->complaint();
    ASSERT_TRUE(vm_->welcome("work"));
    ASSERT_TRUE(vm_->surface(1, SurfaceKind::kScreen, kWidth, kHeight));
    ASSERT_TRUE(vm_->surface(2, SurfaceKind::kWindow, 4, 4, "xterm"));
    ASSERT_TRUE(vm_->buffer(0, 1, memory_));
  }
  void show(uint64_t surface, const Picture& picture) {
    std::memcpy(memory_.pixels(), picture.pixels.data(), picture.pixels.size() * sizeof(Pixel));
    ASSERT_TRUE(vm_->send(FakeVm::frame(surface, ++frame_, 0, 1, picture.width, picture.height),
                          Type::kFrame));
    ASSERT_TRUE(vm_->receive_until<DoneReading>(Type::kDoneReading));
  }
  void expect_key(uint32_t code, bool down) {
    const auto key = vm_->receive<Key>(Type::kKey);
    ASSERT_TRUE(key) << vm_->complaint();
    EXPECT_EQ(key->code, code);
    EXPECT_EQ(key->down, down ? 1U : 0U);
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + "/" + name) << text;
  }
  static Picture pattern(uint32_t width = kWidth, uint32_t height = kHeight) {
    Picture picture(width, height);
    for (uint32_t i = 0; i < picture.pixels.size(); ++i)
      picture.pixels[i] = i * 0x010307 & 0xFFFFFF;
    return picture;
  }
  bool exists(const std::string& name) const {
    return std::filesystem::exists(folder_ + "/" + name);
  }

  static constexpr uint32_t kWidth = 256, kHeight = 64;
  std::string folder_;
  std::optional<FakeVm> vm_;
  FakeBuffer memory_{kWidth * kHeight * 4};
  uint64_t frame_ = 0;
  std::thread running_;
  std::string text_;
  int status_ = 0;
};

TEST_F(ShotProgram, writes_the_screen_as_a_png_with_its_bytes) {
  start("work out.png");
  serve();
  show(1, pattern());
  EXPECT_EQ(finish(), 0) << text_;
  const auto png = read_png(folder_ + "/out.png");
  ASSERT_TRUE(png) << png.error().text;
  EXPECT_EQ(*png, pattern());
}

TEST_F(ShotProgram, writes_a_window_by_its_title) {
  start("work out.png --window xterm");
  serve();
  show(1, pattern());
  show(2, pattern(4, 4));
  EXPECT_EQ(finish(), 0) << text_;
  EXPECT_EQ(read_png(folder_ + "/out.png").value(), pattern(4, 4));
}

TEST_F(ShotProgram, says_what_is_there_when_nothing_is_shown_in_time) {
  start("work out.png --screen 1 --wait-ms 100");
  serve();
  EXPECT_EQ(finish(), 1);
  EXPECT_NE(text_.find("nothing was shown on screen:1"), std::string::npos) << text_;
  EXPECT_NE(text_.find("screen:0 256x64, window:xterm 4x4"), std::string::npos) << text_;
  EXPECT_FALSE(exists("out.png"));
}

TEST_F(ShotProgram, says_that_the_vm_has_ended) {
  start("work out.png");
  serve();
  ASSERT_TRUE(vm_->bye(ByeReason::kVmEnded));
  EXPECT_EQ(finish(), 1);
  EXPECT_NE(text_.find("the VM has ended"), std::string::npos) << text_;
}

TEST_F(ShotProgram, exits_with_1_when_no_such_vm_runs_and_2_on_bad_usage) {
  start("other out.png");
  EXPECT_EQ(finish(), 1);
  EXPECT_NE(text_.find("'other' does not run"), std::string::npos) << text_;
  for (const char* arguments : {"", "work", "work a b", "work out.png --screen 16", "../x out.png",
                                "work --steps missing.json", "work out.png --bad"}) {
    text_.clear();
    start(arguments);
    EXPECT_EQ(finish(), 2) << arguments << ": " << text_;
  }
  start("--help");
  EXPECT_EQ(finish(), 0);
}

TEST_F(ShotProgram, runs_steps_that_wait_for_text_type_and_click) {
  const auto font = Font::load(kDefaultFont);
  ASSERT_TRUE(font) << font.error().text;
  write("steps.json", R"({"steps": [{"wait_text": "login:"}, {"type": "aB\n"},
    {"wait_text": "aB", "timeout_ms": 20000}, {"keys": ["KEY_LEFTCTRL+KEY_C"]},
    {"click": [3, 2], "surface": "window:xterm"}, {"shot": "last.png"}]})");
  start("work --steps steps.json");
  serve();
  show(1, Picture(kWidth, kHeight));
  Picture screen(kWidth, kHeight);
  draw_text(screen, *font, 2, 1, "work login:", 0xAAAAAA, 0);
  show(1, screen);
  ASSERT_TRUE(vm_->receive<Focus>(Type::kFocus)) << vm_->complaint();
  expect_key(KEY_A, true);
  expect_key(KEY_A, false);
  expect_key(KEY_LEFTSHIFT, true);
  expect_key(KEY_B, true);
  expect_key(KEY_B, false);
  expect_key(KEY_LEFTSHIFT, false);
  expect_key(KEY_ENTER, true);
  expect_key(KEY_ENTER, false);
  draw_text(screen, *font, 14, 1, "aB", 0xAAAAAA, 0);
  show(1, screen);
  expect_key(KEY_LEFTCTRL, true);
  expect_key(KEY_C, true);
  expect_key(KEY_C, false);
  expect_key(KEY_LEFTCTRL, false);
  ASSERT_TRUE(vm_->receive<Focus>(Type::kFocus)) << vm_->complaint();
  const auto motion = vm_->receive<Motion>(Type::kMotion);
  ASSERT_TRUE(motion) << vm_->complaint();
  EXPECT_TRUE(motion->surface == 2 && motion->x == 3 && motion->y == 2);
  for (const uint32_t down : {1U, 0U}) {
    const auto button = vm_->receive<Button>(Type::kButton);
    ASSERT_TRUE(button) << vm_->complaint();
    EXPECT_TRUE(button->code == BTN_LEFT && button->down == down);
  }
  EXPECT_EQ(finish(), 0) << text_;
  EXPECT_EQ(read_png(folder_ + "/last.png").value(), screen);
}

TEST_F(ShotProgram, resizes_and_closes_and_waits_for_what_comes_of_it) {
  write("steps.json",
        R"({"steps": [{"resize": [128, 32]}, {"close": true, "surface": "window:xterm"},
    {"wait_gone": true, "surface": "window:xterm"}]})");
  start("work --steps steps.json");
  serve();
  ASSERT_TRUE(vm_->receive<Focus>(Type::kFocus)) << vm_->complaint();
  const auto configure = vm_->receive<Configure>(Type::kConfigure);
  ASSERT_TRUE(configure) << vm_->complaint();
  EXPECT_TRUE(configure->surface == 1 && configure->width == 128 && configure->height == 32);
  show(1, pattern(128, 32));
  ASSERT_TRUE(vm_->receive<Focus>(Type::kFocus)) << vm_->complaint();
  const auto close = vm_->receive<Close>(Type::kClose);
  ASSERT_TRUE(close) << vm_->complaint();
  EXPECT_EQ(close->surface, 2U);
  SurfaceGone gone{};
  gone.surface = 2;
  ASSERT_TRUE(vm_->send(gone, Type::kSurfaceGone));
  EXPECT_EQ(finish(), 0) << text_;
}

TEST_F(ShotProgram, says_that_a_window_is_still_there_or_has_another_size) {
  write("gone.json", R"({"steps": [{"close": true, "surface": "window:xterm"},
    {"wait_gone": true, "surface": "window:xterm", "timeout_ms": 100}]})");
  start("work --steps gone.json");
  serve();
  EXPECT_EQ(finish(), 1);
  EXPECT_NE(text_.find("window:xterm is still there after 100 ms"), std::string::npos) << text_;
  write("size.json", R"({"steps": [{"resize": [8, 8], "timeout_ms": 100}]})");
  start("work --steps size.json");
  serve();
  show(1, pattern());
  EXPECT_EQ(finish(), 1);
  EXPECT_NE(text_.find("it is not 8x8 after 100 ms"), std::string::npos) << text_;
}

TEST_F(ShotProgram, leaves_three_pictures_when_an_image_does_not_match) {
  Picture golden = pattern();
  ASSERT_TRUE(write_png(folder_ + "/golden.png", golden));
  std::filesystem::create_directory(folder_ + "/out");
  write("steps.json", R"({"steps": [{"wait_image": "golden.png", "timeout_ms": 300}]})");
  start("work --steps steps.json --out out");
  serve();
  Picture other = golden;
  other.line(10)[20] ^= 0xFF;
  show(1, other);
  EXPECT_EQ(finish(), 1);
  EXPECT_NE(text_.find("1 of 16384 pixels differ"), std::string::npos) << text_;
  EXPECT_NE(text_.find("1x1+20+10"), std::string::npos) << text_;
  EXPECT_EQ(read_png(folder_ + "/out/actual.png").value(), other);
  EXPECT_EQ(read_png(folder_ + "/out/expected.png").value(), golden);
  EXPECT_EQ(read_png(folder_ + "/out/difference.png").value().at(20, 10), 0xFF0000U);
}

TEST_F(ShotProgram, goes_on_as_soon_as_the_image_matches) {
  ASSERT_TRUE(write_png(folder_ + "/golden.png", pattern()));
  write("steps.json", R"({"steps": [{"wait_image": "golden.png"}]})");
  start("work --steps steps.json");
  serve();
  show(1, Picture(kWidth, kHeight));
  show(1, pattern());
  EXPECT_EQ(finish(), 0) << text_;
  EXPECT_FALSE(exists("actual.png"));
}

TEST_F(ShotProgram, prints_the_text_it_read_when_the_wanted_one_does_not_come) {
  const auto font = Font::load(kDefaultFont);
  ASSERT_TRUE(font) << font.error().text;
  write("steps.json", R"({"steps": [{"wait_text": "login:", "timeout_ms": 300}]})");
  start("work --steps steps.json");
  serve();
  Picture screen(kWidth, kHeight);
  draw_text(screen, *font, 0, 0, "Kernel panic", 0xAAAAAA, 0);
  show(1, screen);
  EXPECT_EQ(finish(), 1);
  EXPECT_NE(text_.find("no text \"login:\""), std::string::npos) << text_;
  EXPECT_NE(text_.find("\nKernel panic\n"), std::string::npos) << text_;
  EXPECT_TRUE(exists("actual.png"));
}

TEST_F(ShotProgram, survives_a_buffer_revoked_while_it_waits) {
  start("work out.png");
  serve();
  memory_.revoke();
  ASSERT_TRUE(vm_->send(FakeVm::frame(1, 1, 0, 1, kWidth, kHeight), Type::kFrame));
  EXPECT_EQ(finish(), 0) << text_;
  EXPECT_EQ(read_png(folder_ + "/out.png").value(), Picture(kWidth, kHeight));
}

}  // namespace
}  // namespace lethe::gui
