// For tests: a frontend as a program, against a fake VM named "work" with one screen.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/test_util.h"
#include "frontend/fake_vm.h"
#include "frontend/picture.h"

namespace lethe::gui {

inline Picture pattern(uint32_t width, uint32_t height, uint32_t seed = 1) {
  Picture picture(width, height);
  for (uint32_t i = 0; i < picture.pixels.size(); ++i)
    picture.pixels[i] = (i * 0x010307 * seed + seed) & 0xFFFFFF;
  return picture;
}

class FrontendProgram : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/lethe-frontend-test-XXXXXX";
    folder_ = ::mkdtemp(name);
    std::filesystem::create_directories(folder_ + "/lethe/work");
    vm_.emplace(folder_ + "/lethe/work/gui.sock");
  }
  void TearDown() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    std::filesystem::remove_all(folder_);
  }

  // Runs it, in an environment that `prepare` has set up; what it says is in log().
  void spawn(const char* program, std::vector<std::string> arguments,
             const std::function<void()>& prepare) {
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::setenv("XDG_RUNTIME_DIR", folder_.c_str(), 1);
    prepare();
    const int log = ::open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(log, 1);
    ::dup2(log, 2);
    std::vector<char*> argv{const_cast<char*>(program)};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(program, argv.data());
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
  // Welcomes it, with one screen of kWidth x kHeight that shows picture_.
  void serve() {
    ASSERT_TRUE(vm_->accept()) << log();
    ASSERT_TRUE(vm_->receive<Hello>(Type::kHello)) << vm_->complaint();
    ASSERT_TRUE(vm_->welcome("work"));
    ASSERT_TRUE(vm_->surface(1, SurfaceKind::kScreen, kWidth, kHeight));
    ASSERT_TRUE(vm_->buffer(0, 1, memory_));
    show(1, picture_);
  }
  void show(uint64_t surface, const Picture& picture) {
    std::memcpy(memory_.pixels(), picture.pixels.data(), picture.pixels.size() * sizeof(Pixel));
    ASSERT_TRUE(vm_->send(FakeVm::frame(surface, ++frame_, 0, 1, picture.width, picture.height),
                          Type::kFrame));
    ASSERT_TRUE(vm_->receive_until<DoneReading>(Type::kDoneReading)) << log();
  }
  // Takes the memory of what it shows away, and has it look there again: it must see black.
  void revoke() {
    memory_.revoke();
    ASSERT_TRUE(vm_->send(FakeVm::frame(1, ++frame_, 0, 1, kWidth, kHeight), Type::kFrame));
    ASSERT_TRUE(vm_->receive_until<DoneReading>(Type::kDoneReading)) << log();
  }
  void expect_key(uint32_t code, bool down, uint64_t surface = 1) {
    const auto key = vm_->receive_until<Key>(Type::kKey);
    ASSERT_TRUE(key) << vm_->complaint();
    EXPECT_EQ(key->code, code);
    EXPECT_EQ(key->down, down ? 1U : 0U);
    EXPECT_EQ(key->surface, surface);
  }

  static constexpr uint32_t kWidth = 320, kHeight = 200;
  std::string folder_;
  std::optional<FakeVm> vm_;
  FakeBuffer memory_{1 << 20};
  Picture picture_ = pattern(kWidth, kHeight);
  uint64_t frame_ = 0;
  pid_t pid_ = -1;
};

}  // namespace lethe::gui
