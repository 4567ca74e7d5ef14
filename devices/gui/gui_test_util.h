// A Gui with a creator and a socket, for tests of what is shown and heard.
#pragma once

#include <linux/virtio_gpu.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "devices/gui/fake_frontend.h"
#include "devices/gui/gui.h"

namespace lethe {

class GuiRig {
 public:
  explicit GuiRig(GuiOptions options = {}) {
    options.vm_name = "test";
    gui = std::make_unique<Gui>(options);
    const auto listening = gui->listen(x_socket.take());
    EXPECT_TRUE(listening) << listening.error().text;
  }
  ~GuiRig() {
    if (gui) on_gui([&] { gui->forget_listener(creator); });
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
  [[nodiscard]] const LedgerCounters& ledger() { return gui->ledger().counters(); }
  static uint64_t count(const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  }
  [[nodiscard]] const std::string& path() const { return x_socket.path(); }

  FakeCreator creator;
  std::unique_ptr<Gui> gui;

 private:
  FakeGuiSocket x_socket;
};

}  // namespace lethe
