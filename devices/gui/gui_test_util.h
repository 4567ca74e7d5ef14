// A Gui with a creator and a socket, for tests of what is shown and heard.
#pragma once

#include <linux/virtio_gpu.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/test_util.h"
#include "devices/gui/fake_frontend.h"
#include "devices/gui/gui.h"

namespace lethe {

// The tests' pictures.
constexpr uint32_t kWidth = 64;
constexpr uint32_t kHeight = 16;
constexpr uint64_t kBytes = uint64_t{kWidth} * kHeight * 4;  // a page

class GuiRig {
 public:
  explicit GuiRig(GuiOptions options = {}, std::unique_ptr<FakeGuiSocket> socket = nullptr)
      : x_socket(socket ? std::move(socket) : std::make_unique<FakeGuiSocket>()) {
    x_descriptors = open_descriptors();
    options.vm_name = "test";
    gui = std::make_unique<Gui>(options);
    const auto listening = gui->listen(x_socket->take());
    EXPECT_TRUE(listening) << listening.error().text;
    x_idle.emplace(*gui);
  }
  ~GuiRig() {
    if (gui) {
      on_gui([&] { gui->forget_listener(creator); });
      x_idle->expect_idle();
      end();
    }
    EXPECT_EQ(open_descriptors(), x_descriptors - 1) << "the listening socket is closed, too";
  }
  void end() {
    if (gui) on_gui([&] { gui->forget_listener(creator); });
    gui.reset();
  }

  void on_gui(std::function<void()> work) { gui->run_and_wait(std::move(work)); }
  SurfaceId add_surface(const std::string& title, uint32_t width, uint32_t height) {
    SurfaceId id = 0;
    on_gui([&] {
      id = gui->add_surface({.kind = gui::SurfaceKind::kWindow,
                             .flags = gui::kSurfaceVisible,
                             .width = width,
                             .height = height,
                             .title = title},
                            creator)
               .value();
    });
    return id;
  }
  void remove_surface(SurfaceId id) {
    on_gui([&] { gui->remove_surface(id); });
  }
  BufferId create_buffer(uint64_t bytes) {
    BufferId id;
    on_gui([&] { id = gui->create_buffer(bytes, creator).value(); });
    return id;
  }
  static SurfaceContent content(BufferId buffer, uint32_t width, uint32_t height) {
    return {.buffer = buffer,
            .offset = 0,
            .stride = width * 4,
            .format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM,
            .width = width,
            .height = height};
  }
  uint64_t present(SurfaceId surface, BufferId buffer, uint32_t width, uint32_t height,
                   const Rect& damage) {
    uint64_t frame = 0;
    on_gui([&] { frame = gui->present(surface, content(buffer, width, height), damage); });
    return frame;
  }
  void release_buffer(BufferId buffer) {
    on_gui([&] { gui->release_buffer(buffer); });
  }
  [[nodiscard]] std::vector<FakeCreator::Event> events() {
    std::vector<FakeCreator::Event> result;
    on_gui([&] { result = creator.events; });
    return result;
  }
  [[nodiscard]] uint64_t done(SurfaceId surface) {
    uint64_t result = 0;
    on_gui([&] { result = creator.done[surface]; });
    return result;
  }
  [[nodiscard]] std::vector<BufferId> freed() {
    std::vector<BufferId> result;
    on_gui([&] { result = creator.freed; });
    return result;
  }
  [[nodiscard]] ShareLedger::State state(BufferId id) {
    ShareLedger::State result{};
    on_gui([&] { result = gui->ledger().state(id); });
    return result;
  }
  [[nodiscard]] uint32_t holders(BufferId id) {
    uint32_t result = 0;
    on_gui([&] { result = gui->ledger().holders(id); });
    return result;
  }
  // A metric without labels, or the sum over all of them.
  [[nodiscard]] double metric(std::string_view name) const;

  [[nodiscard]] const LedgerCounters& ledger() { return gui->ledger().counters(); }
  static uint64_t count(const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  }
  [[nodiscard]] const std::string& path() const { return x_socket->path(); }
  [[nodiscard]] FakeFrontend connect(uint32_t flags = 0) {
    return FakeFrontend::connect(path(), flags);
  }
  // Presents all of a buffer of kWidth x kHeight, and waits until the frontend has the frame.
  [[nodiscard]] bool show(FakeFrontend& frontend, SurfaceId surface, BufferId id) {
    present(surface, id, kWidth, kHeight, {0, 0, kWidth, kHeight});
    while (frontend.frames[surface].generation != id.generation)
      if (!frontend.receive_until(gui::Type::kFrame)) return false;
    return true;
  }

  FakeCreator creator;
  std::unique_ptr<Gui> gui;

 private:
  std::unique_ptr<FakeGuiSocket> x_socket;
  size_t x_descriptors = 0;
  std::optional<IdleGui> x_idle;
};

inline double GuiRig::metric(std::string_view name) const {
  MetricSum sum(name);
  gui->report_metrics(sum);
  return sum.sum;
}

}  // namespace lethe
