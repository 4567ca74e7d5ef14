// For the client's tests: a listener that writes down what it is told, and a client connected to a
// fake VM.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "frontend/client.h"
#include "frontend/fake_vm.h"

namespace lethe::gui {

// Writes down what it is told; copies a frame's first pixel.
class Recorder final : public Listener {
 public:
  void on_surface(const SurfaceState& surface) override { surfaces.push_back(surface); }
  void on_surface_gone(uint64_t surface) override { gone.push_back(surface); }
  void on_frame(uint64_t, const FrameView& frame) override {
    frames.push_back(frame);
    uint32_t pixel = 0;
    if (frame.pixels != nullptr) std::memcpy(&pixel, frame.pixels, sizeof pixel);
    first_pixels.push_back(pixel);
  }
  void on_cursor(uint64_t, const CursorView& cursor) override { cursors.push_back(cursor); }

  std::vector<SurfaceState> surfaces;
  std::vector<uint64_t> gone;
  std::vector<FrameView> frames;
  std::vector<uint32_t> first_pixels;
  std::vector<CursorView> cursors;
};

inline size_t open_descriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++count;
  return count;
}

class ClientTest : public testing::Test {
 protected:
  void SetUp() override {
    auto client = Client::connect(vm_.frontend_end(), {.name = "test"});
    ASSERT_TRUE(client) << client.error().text;
    client_.emplace(std::move(*client));
    hello_ = vm_.receive<Hello>(Type::kHello);
    ASSERT_TRUE(hello_) << vm_.complaint();
  }
  // A VM with one screen of 4x2.
  void greet() {
    ASSERT_TRUE(vm_.welcome());
    ASSERT_TRUE(vm_.surface(1, SurfaceKind::kScreen, 4, 2));
  }
  void process() {
    const auto result = client_->process(recorder_);
    EXPECT_TRUE(result) << result.error().text;
  }
  // The connection must end now, for this reason.
  void expect_refused(const std::string& why) {
    const auto result = client_->process(recorder_);
    ASSERT_FALSE(result) << "was not refused";
    EXPECT_NE(result.error().text.find(why), std::string::npos) << result.error().text;
  }
  // Sends one message after a proper greeting, with a buffer of 64 bytes in slot 5, generation 9.
  template <typename T>
  void expect_message_refused(T message, Type type, const std::string& why) {
    greet();
    ASSERT_TRUE(vm_.buffer(5, 9, memory_));
    process();
    ASSERT_TRUE(vm_.send(message, type));
    expect_refused(why);
  }

  FakeVm vm_;
  FakeBuffer memory_{64};
  std::optional<Client> client_;
  std::optional<Hello> hello_;
  Recorder recorder_;
};

}  // namespace lethe::gui
