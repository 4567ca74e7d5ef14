// virtio-gpu's scanouts: screens that frontends see (virtio 1.2, 5.7.6.8), their cursors, what the
// guest is told of them (display info, EDID), and their input.
//
// All screens are there from the start, beside one another from left to right. A frontend's
// Configure changes the size that a screen asks for; what it shows is the guest's decision.
//
// Threading: the gui thread.
#pragma once

#include <linux/virtio_gpu.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/state.h"
#include "devices/gui/gui.h"
#include "devices/virtio/gpu/pixels.h"
#include "devices/virtio/gpu/quiet_listener.h"
#include "devices/virtio/gpu/resources.h"
#include "devices/virtio/input/screen_input.h"

namespace lethe {

class Screens final : private QuietListener {
 public:
  // Sizes that a frontend may ask for: what drivers take at least (Linux), and the channel's most.
  static constexpr uint32_t kSideMin = 64;

  // `input` may be null: a machine without keyboard and pointer.
  Screens(Gui& gui, Resources& resources, ScreenInput* input)
      : x_gui(gui), x_resources(resources), x_input(input) {}
  ~Screens() override;
  // Shows `count` screens of this size.
  [[nodiscard]] Result<> open(uint32_t count, uint32_t width, uint32_t height);

  [[nodiscard]] virtio_gpu_resp_display_info display_info() const;
  uint32_t edid(uint32_t scanout, virtio_gpu_resp_edid& answer) const;

  uint32_t set_scanout(const virtio_gpu_set_scanout& request);
  uint32_t set_scanout_blob(const virtio_gpu_set_scanout_blob& request);
  uint32_t flush(const virtio_gpu_resource_flush& request);
  // False: refused.
  bool update_cursor(const virtio_gpu_update_cursor& request);
  // The resource goes away: nobody shows it then.
  void forget(Resource& resource);
  // The guest's driver went away: nothing is shown, screens ask for what they did.
  void clear();

  // Snapshots; the resources are there.
  void save(StateWriter& to) const;
  void restore(StateReader& from);

  // A screen asks for another size now.
  std::function<void()> on_resized;

 private:
  struct Screen {
    SurfaceId surface = 0;
    uint32_t wanted_width = 0;
    uint32_t wanted_height = 0;
    uint32_t resource = 0;     // what it shows, 0: nothing
    virtio_gpu_rect source{};  // the part of the resource (of its framebuffer, if it is a blob)
    SurfaceContent content;
    uint64_t blob_offset = 0;  // of the framebuffer's first pixel
    uint32_t whole_width = 0;  // of the framebuffer
    uint32_t whole_height = 0;
    uint32_t cursor = 0;  // resource
    uint32_t hot_x = 0;
    uint32_t hot_y = 0;

    [[nodiscard]] uint32_t width() const { return resource != 0 ? source.width : wanted_width; }
    [[nodiscard]] uint32_t height() const { return resource != 0 ? source.height : wanted_height; }
  };
  void key(SurfaceId surface, uint32_t code, bool down) override;
  void motion(SurfaceId surface, uint32_t x, uint32_t y) override;
  void button(SurfaceId surface, uint32_t code, bool down) override;
  void wheel(SurfaceId surface, int32_t vertical, int32_t horizontal) override;
  void configure(SurfaceId surface, int32_t x, int32_t y, uint32_t width, uint32_t height) override;

  [[nodiscard]] SurfaceState state(size_t index) const;
  void update_states();
  uint32_t show_nothing(size_t index);
  uint32_t show(size_t index, Resource& resource, uint64_t framebuffer, const SurfaceContent& base,
                const virtio_gpu_rect& source);
  void restore_content(uint32_t index, StateReader& from);
  void hide(Screen& screen);
  void hide_cursor(Screen& screen);
  void release(uint32_t resource);
  void refresh(const Resource& resource, const virtio_gpu_rect& flushed);

  Gui& x_gui;
  Resources& x_resources;
  ScreenInput* const x_input;
  std::vector<Screen> x_screens;
};

}  // namespace lethe
