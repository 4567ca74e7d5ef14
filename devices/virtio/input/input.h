// virtio-input (virtio 1.2, 5.8): a keyboard, and a tablet (absolute pointer, buttons, wheel).
//
// Each thing that happens becomes one frame of evdev events, SYN_REPORT last, an event a buffer of
// the driver's. It goes straight into the driver's ring, on the thread that reports it. What the
// driver has no buffers for waits in order (InputBacklog says how much, and what becomes of the
// rest). While no driver runs the device nothing waits: what was typed before the guest was there
// is not for it. Keys are repeated by the guest (EV_REP).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/event_loop.h"
#include "devices/virtio/device.h"
#include "devices/virtio/input/input_backlog.h"
#include "devices/virtio/input/input_config.h"
#include "devices/virtio/input/screen_input.h"

namespace lethe {

struct InputCounters {               // any thread
  std::atomic<uint64_t> frames{0};   // taken from the host; merged motions are not
  std::atomic<uint64_t> merged{0};   // motions that replaced one the guest had not read
  std::atomic<uint64_t> ignored{0};  // no driver was there
  std::atomic<uint64_t> lost{0};     // presses and notches: the guest had not read for too long
  std::atomic<uint64_t> unknown{0};  // keys that the device does not have
  std::atomic<uint64_t> waiting{0};  // frames, now
  std::atomic<uint64_t> status{0};   // events from the guest (LEDs)
  std::atomic<uint64_t> refused{0};  // the guest's buffers that are too small
  std::atomic<uint32_t> leds{0};     // bit n: LED n is on
};

// Threading: queues are served on `loop` (the gui thread), where events come from too; transport
// calls on vCPU threads take the device's lock and wait for nothing else. Destroyed on any thread;
// the loop must live on.
class InputDevice : public VirtioDevice {
 public:
  static constexpr uint16_t kEventQueue = 0;  // 5.8.2
  static constexpr uint16_t kStatusQueue = 1;

  [[nodiscard]] static std::unique_ptr<InputDevice> make_keyboard(EventLoop& loop);
  [[nodiscard]] static std::unique_ptr<InputDevice> make_tablet(EventLoop& loop);
  ~InputDevice() override;

  [[nodiscard]] uint16_t virtio_id() const override { return VIRTIO_ID_INPUT; }
  [[nodiscard]] const char* name() const override;
  [[nodiscard]] uint64_t device_features() const override { return 0; }
  [[nodiscard]] std::span<const uint16_t> queue_sizes_max() const override;
  [[nodiscard]] uint32_t config_size() const override { return sizeof(virtio_input_config); }
  void read_config(uint32_t offset, std::span<uint8_t> to) override;
  void write_config(uint32_t offset, std::span<const uint8_t> from) override;
  void start(uint64_t features, VirtioHost& host) override;
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) override;
  void stop_queue(uint16_t index) override;
  void reset() override;
  // What the driver has not read yet waits for it. In another process nobody holds the keys down
  // that are: they go up.
  void freeze() override;
  void save(StateWriter& to) override;
  [[nodiscard]] Result<> restore(StateReader& from) override;

  [[nodiscard]] const InputCounters& counters() const;

 private:
  friend class InputDevices;
  class Core;
  InputDevice(EventLoop& loop, InputKind kind);
  // Shared with what the loop has still to run, and with InputDevices.
  const std::shared_ptr<Core> x_core;
};

// A screen's input, as the machine's devices take it.
//
// Threading: any thread, but all calls from one, so that events keep their order. It may outlive
// the devices: what comes then is ignored.
class InputDevices final : public ScreenInput {
 public:
  // Either may be null: its events are dropped.
  InputDevices(InputDevice* keyboard, InputDevice* tablet);
  ~InputDevices() override;
  void key(uint32_t code, bool down) override;
  void motion(uint32_t x, uint32_t y) override;  // larger than kPointerMax counts as that
  void button(uint32_t code, bool down) override;
  void wheel(int32_t vertical, int32_t horizontal) override;

 private:
  const std::shared_ptr<InputDevice::Core> x_keyboard;
  const std::shared_ptr<InputDevice::Core> x_tablet;
};

}  // namespace lethe
