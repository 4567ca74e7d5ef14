// For the tests of lethe-vnc as a program: it runs against a fake VM.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/test_util.h"
#include "frontend/fake_vm.h"
#include "frontend/vnc/fake_rfb_client.h"

namespace lethe::gui {

inline Picture pattern(uint32_t width, uint32_t height, uint32_t seed = 1) {
  Picture picture(width, height);
  for (uint32_t i = 0; i < picture.pixels.size(); ++i)
    picture.pixels[i] = (i * 0x010307 * seed + seed) & 0xFFFFFF;
  return picture;
}

class VncProgram : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/lethe-vnc-test-XXXXXX";
    folder_ = ::mkdtemp(name);
    std::filesystem::create_directories(folder_ + "/lethe/work");
    vm_.emplace(folder_ + "/lethe/work/gui.sock");
    std::ofstream(folder_ + "/password") << "secret12\n";
    ::chmod((folder_ + "/password").c_str(), 0600);
  }
  void TearDown() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    std::filesystem::remove_all(folder_);
  }
  void start(std::vector<std::string> arguments) {
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::setenv("XDG_RUNTIME_DIR", folder_.c_str(), 1);
    // libvncserver gives strtol() a header's line, which ends with the line, not with a zero.
    ::setenv("ASAN_OPTIONS", "strict_string_checks=0", 1);
    const int log = ::open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(log, 1);
    ::dup2(log, 2);
    std::vector<char*> argv{const_cast<char*>(LETHE_VNC_PROGRAM)};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(LETHE_VNC_PROGRAM, argv.data());
    std::_Exit(127);
  }
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
  std::chrono::nanoseconds time_on_cpu() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/schedstat");
    int64_t on_cpu = 0;
    file >> on_cpu;
    return std::chrono::nanoseconds(on_cpu);
  }
  std::string socket() const { return folder_ + "/lethe/work/vnc.sock"; }
  // The number after `what` in its output; 0 if it does not come.
  uint16_t port(const std::string& what) const {
    size_t at = std::string::npos;
    (void)eventually([&] { return (at = log().find(what)) != std::string::npos; });
    return at == std::string::npos
               ? 0
               : static_cast<uint16_t>(std::atoi(log().c_str() + at + what.size()));
  }
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
  void expect_key(uint32_t code, bool down, uint64_t surface = 1) {
    const auto key = vm_->receive_until<Key>(Type::kKey);
    ASSERT_TRUE(key) << vm_->complaint();
    EXPECT_EQ(key->code, code);
    EXPECT_EQ(key->down, down ? 1U : 0U);
    EXPECT_EQ(key->surface, surface);
  }
  // On the Unix socket, with the screen's picture seen.
  void start_with_client() {
    start({"work"});
    serve();
    ASSERT_TRUE(client_.connect_unix(socket())) << log();
    ASSERT_TRUE(client_.greet()) << log();
    ASSERT_TRUE(client_.wait_for_picture(picture_)) << log();
  }

  static constexpr uint32_t kWidth = 320, kHeight = 200;
  std::string folder_;
  std::optional<FakeVm> vm_;
  FakeBuffer memory_{1 << 20};
  Picture picture_ = pattern(kWidth, kHeight);
  FakeRfbClient client_;
  uint64_t frame_ = 0;
  pid_t pid_ = -1;
};

}  // namespace lethe::gui
