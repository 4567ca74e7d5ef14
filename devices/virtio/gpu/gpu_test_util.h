// For tests: a gui, virtio-gpu on it, a driver, and frontends.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/gui/fake_frontend.h"
#include "devices/virtio/gpu/fake_gpu_driver.h"

namespace lethe {

// Remembers what screens sent.
class FakeScreenInput : public ScreenInput {
 public:
  void key(uint32_t code, bool down) override { add(fmt::format("key {} {}", code, down)); }
  void motion(uint32_t x, uint32_t y) override { add(fmt::format("motion {} {}", x, y)); }
  void button(uint32_t code, bool down) override { add(fmt::format("button {} {}", code, down)); }
  void wheel(int32_t v, int32_t h) override { add(fmt::format("wheel {} {}", v, h)); }
  std::vector<std::string> events;  // the gui thread's

 private:
  void add(std::string text) { events.push_back(std::move(text)); }
};

class GpuTest : public testing::Test {
 protected:
  static constexpr uint64_t kMemory = 256 * kMiB;
  static constexpr uint32_t kOk = VIRTIO_GPU_RESP_OK_NODATA;
  static constexpr uint32_t kMapped = VIRTIO_GPU_RESP_OK_MAP_INFO;
  static constexpr uint32_t kBad = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
  static constexpr uint32_t kNoResource = VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
  static constexpr uint32_t kNoContext = VIRTIO_GPU_RESP_ERR_INVALID_CONTEXT_ID;
  static constexpr uint32_t kNoMemory = VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
  static constexpr uint64_t kWindow = 16 * kMiB;

  explicit GpuTest(GuiOptions options = {}, GpuOptions gpu_options = small()) {
    options.vm_name = "test";
    gui = std::make_unique<Gui>(options);
    const auto listening = gui->listen(socket.take());
    EXPECT_TRUE(listening) << listening.error().text;
    idle.emplace(*gui);
    const GuestMemory::Range ram{GuestAddr{0}, kMemory};
    memory = GuestMemory::create({&ram, 1}, {.thp = false}).value();
    device = GpuDevice::create(*memory, *gui, gpu_options, &input).value();
    guest = std::make_unique<FakeGpuDriver>(*memory, *device);
  }
  ~GpuTest() override {
    guest.reset();
    device.reset();
    idle->expect_idle();
    gui.reset();
    EXPECT_EQ(open_descriptors(), descriptors - 1) << "the listening socket is closed, too";
  }
  static GpuOptions small() {
    return {.screens = 1, .width = 640, .height = 480, .window_memory = kWindow};
  }
  static uint64_t counter(const std::atomic<uint64_t>& value) { return value.load(); }
  [[nodiscard]] const LedgerCounters& ledger() { return gui->ledger().counters(); }
  void on_gui(std::function<void()> work) { gui->run_and_wait(std::move(work)); }
  [[nodiscard]] std::vector<std::string> take_input() {
    std::vector<std::string> events;
    on_gui([&] { events = std::exchange(input.events, {}); });
    return events;
  }
  [[nodiscard]] FakeFrontend connect() { return FakeFrontend::connect(socket.path()); }
  // Fills guest memory so that each pixel says where it is.
  void paint(GuestAddr at, uint32_t width, uint32_t height, uint32_t tag) {
    std::vector<uint32_t> pixels(size_t{width} * height);
    for (uint32_t i = 0; i < pixels.size(); ++i) pixels[i] = tag + i;
    ASSERT_TRUE(memory->write(
        at, {reinterpret_cast<const uint8_t*>(pixels.data()), pixels.size() * kPixel}));
  }
  static constexpr uint32_t kPixel = 4;
  // A pixel of what the frontend was shown last.
  static uint32_t pixel(const FakeFrontend& frontend, const gui::Frame& frame, uint32_t x,
                        uint32_t y) {
    const auto found = frontend.buffers.find(frame.generation);
    if (found == frontend.buffers.end()) return 0xdead'dead;
    uint32_t value = 0;
    std::memcpy(
        &value,
        found->second.data + frame.offset + uint64_t{y} * frame.stride + uint64_t{x} * kPixel,
        sizeof value);
    return value;
  }
  // Reads until a frame with a buffer of this width came, of any surface.
  static std::optional<gui::Frame> frame_of(FakeFrontend& frontend, uint32_t width) {
    for (int i = 0; i < 1000; ++i) {
      for (const auto& [surface, frame] : frontend.frames)
        if (frame.buffer != gui::kNoBuffer && frame.width == width) return frame;
      if (!frontend.receive()) return std::nullopt;
    }
    return std::nullopt;
  }

  FakeGuiSocket socket;
  FakeScreenInput input;
  std::unique_ptr<Gui> gui;
  size_t descriptors = open_descriptors();  // the listening socket's among them
  std::optional<IdleGui> idle;
  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<GpuDevice> device;
  std::unique_ptr<FakeGpuDriver> guest;
};

}  // namespace lethe
