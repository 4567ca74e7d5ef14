// A virtio-gpu context of the window capset: windows by commands (window_protocol.h), and the
// events that go back. Contexts of other kinds (Linux makes one for whoever opens the device) have
// neither.
//
// Threading: the gui thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <unordered_map>

#include "base/state.h"
#include "devices/gui/gui.h"
#include "devices/virtio/gpu/event_ring.h"
#include "devices/virtio/gpu/quiet_listener.h"
#include "devices/virtio/gpu/resources.h"
#include "devices/virtio/gpu/window_protocol.h"

namespace lethe {

class WindowContext final : private QuietListener {
 public:
  // Bytes that one SUBMIT_3D may have copied out of GUEST blobs: half a second's work or so.
  static constexpr uint64_t kCopyBytesMax = uint64_t{2} << 30;

  // `serial`: never used for another one. `on_events`: there is something to be polled now.
  WindowContext(Gui& gui, Resources& resources, uint64_t serial, std::function<void()> on_events)
      : x_gui(gui), x_resources(resources), x_serial(serial), x_on_events(std::move(on_events)) {}
  ~WindowContext() override;  // its windows are gone

  struct Outcome {
    uint32_t response = 0;  // VIRTIO_GPU_RESP_*
    bool polls = false;     // the last command was kPoll
  };
  // The commands of a SUBMIT_3D: all, or those before the first bad one.
  Outcome run(std::span<const uint8_t> commands);
  // Whether a poll is to be answered now.
  [[nodiscard]] bool poll_due() const { return x_ring.unread() || !x_ring.active(); }

  // Snapshots; the resources are there, but for their content. restore(): of a new context.
  void save(StateWriter& to) const;
  void restore(StateReader& from);

  // The resource goes away: no window shows it then, and it is no ring.
  void forget(Resource& resource);
  // No frontend maps the resource's memory any more.
  void resource_released(uint32_t resource);

  [[nodiscard]] size_t windows() const { return x_windows.size(); }

 private:
  struct Window {
    SurfaceId surface = 0;
    uint32_t parent = 0;
    uint32_t resource = 0;  // 0: shows nothing
    SurfaceState state;
    SurfaceContent content;
    // What was presented and not yet read: the oldest first. When there are too many, the newest
    // ones become one.
    struct Presented {
      uint64_t frame = 0;
      uint32_t serial = 0;
    };
    std::array<Presented, 8> presented{};
    uint32_t presented_count = 0;
  };

  void button(SurfaceId surface, uint32_t code, bool down) override;
  void key(SurfaceId surface, uint32_t code, bool down) override;
  void motion(SurfaceId surface, uint32_t x, uint32_t y) override;
  void wheel(SurfaceId surface, int32_t vertical, int32_t horizontal) override;
  void focus(SurfaceId surface, bool focused) override;
  void configure(SurfaceId surface, int32_t x, int32_t y, uint32_t width, uint32_t height) override;
  void close(SurfaceId surface) override;
  void done_reading(SurfaceId surface, uint64_t frame) override;
  void event(SurfaceId surface, uint32_t type, uint32_t a, uint32_t b = 0);

  uint32_t run_one(uint32_t command, std::span<const uint8_t> bytes);
  uint32_t set_event_ring(const window::SetEventRing& command);
  uint32_t create(const window::WindowCreate& command);
  uint32_t geometry(const window::WindowCreate& command);
  uint32_t title(const window::WindowTitle& command);
  uint32_t attach(const window::WindowAttach& command);
  uint32_t show(Window& window, Resource* resource, const window::WindowAttach& command);
  [[nodiscard]] bool start_ring(Resource* resource);
  uint32_t restore_window(StateReader& from, window::WindowCreate& geometry_later);
  uint32_t damage(const window::WindowDamage& command);
  uint32_t destroy(const window::WindowDestroy& command);
  uint32_t poll(const window::Poll& command);

  [[nodiscard]] Window* find(uint32_t id);
  [[nodiscard]] Resource* usable(uint32_t resource);
  // The state that a command asks for; nothing if it breaks a rule. `self`: the window's number.
  [[nodiscard]] std::optional<SurfaceState> state_of(const window::WindowCreate& command);
  void detach(Window& window);
  [[nodiscard]] bool refresh(const Window& window, const Rect& damage);
  void end_ring();

  Gui& x_gui;
  Resources& x_resources;
  const uint64_t x_serial;
  const std::function<void()> x_on_events;
  EventRing x_ring;
  uint32_t x_ring_resource = 0;
  uint64_t x_copy_limit = 0;  // for x_resources.copied(), in the present run()
  std::unordered_map<uint32_t, Window> x_windows;
  std::unordered_map<SurfaceId, uint32_t> x_by_surface;
};

}  // namespace lethe
