// For the tests of lethe-vnc as a program: it runs against a fake VM.
#pragma once

#include <fmt/format.h>
#include <sys/stat.h>

#include "frontend/program_fixture.h"
#include "frontend/vnc/fake_rfb_client.h"

namespace lethe::gui {

class VncProgram : public FrontendProgram {
 protected:
  void SetUp() override {
    FrontendProgram::SetUp();
    std::ofstream(folder_ + "/password") << "secret12\n";
    ::chmod((folder_ + "/password").c_str(), 0600);
  }
  void start(std::vector<std::string> arguments) {
    spawn(LETHE_VNC_PROGRAM, std::move(arguments), [] {
      // libvncserver gives strtol() a header's line, which ends with the line, not with a zero.
      ::setenv("ASAN_OPTIONS", "strict_string_checks=0", 1);
    });
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
  // On the Unix socket, with the screen's picture seen.
  void start_with_client() {
    start({"work"});
    serve();
    ASSERT_TRUE(client_.connect_unix(socket())) << log();
    ASSERT_TRUE(client_.greet()) << log();
    ASSERT_TRUE(client_.wait_for_picture(picture_)) << log();
  }

  FakeRfbClient client_;
};

}  // namespace lethe::gui
