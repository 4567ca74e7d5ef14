// For tests and benches: plays transport and driver against a VirtioDevice, so that a device is
// tested in this process from the guest's point of view.
//
//   FakeTransport guest(*memory, device);
//   guest.start();
//   const auto written = guest.request(0, buffers);   // adds, kicks, waits for the interrupt
//
// Threading: one thread plays the guest. The device may call needs_reset() and config_changed()
// from any thread.
#pragma once

#include <linux/virtio_config.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/event_fd.h"
#include "base/mutex.h"
#include "devices/virtio/device.h"
#include "devices/virtio/fake_driver.h"

namespace lethe {

class FakeTransport : public VirtioHost {
 public:
  static constexpr std::chrono::milliseconds kPatience{10'000};  // for a device that does answer

  // `memory` and `device` must outlive this. Rings and heap come out of the first region of memory,
  // from `heap_start` to its end: 4 MiB for each queue of 512 are enough, untouched pages cost
  // nothing.
  FakeTransport(const GuestMemory& memory, VirtioDevice& device,
                GuestAddr heap_start = GuestAddr{0});
  ~FakeTransport() override;  // resets the device

  // Negotiates `wanted` out of what the device and the ring offer, gives the device every queue, of
  // `queue_size` entries or its maximum if that is less. Counters and drivers start afresh.
  void start(uint64_t wanted = ~uint64_t{0}, uint16_t queue_size = 64);
  void reset();
  // One queue's reset (2.6.1), and its return with an empty ring.
  void stop_queue(uint16_t index);
  void restart_queue(uint16_t index);

  // As for a snapshot: the device's queues stop where they are, and go on there. The driver may be
  // at work meanwhile, on another thread.
  void freeze();
  void thaw();
  // Frozen: what the device saves; and the same guest's life in another device of the same memory,
  // which gets that state. Errors are the device's.
  [[nodiscard]] std::vector<uint8_t> save();
  [[nodiscard]] Result<> move_to(VirtioDevice& device, std::span<const uint8_t> state);
  void leave();  // before, if the old device has to be gone when the new one is made
  // Frozen.
  [[nodiscard]] const QueuePosition& position(uint16_t index) const {
    return x_queues[index]->keeper.position;
  }

  [[nodiscard]] uint64_t features() const { return x_features; }
  [[nodiscard]] uint16_t queues() const { return static_cast<uint16_t>(x_queues.size()); }
  [[nodiscard]] GuestHeap& heap() { return x_heap; }
  [[nodiscard]] FakeDriver& driver(uint16_t index) { return *x_queues[index]->driver; }
  [[nodiscard]] FakeInterrupt& interrupt(uint16_t index) { return x_queues[index]->interrupt; }
  [[nodiscard]] const QueueCounters& counters(uint16_t index) { return x_queues[index]->counters; }

  // A notification, whether the device wants one or not.
  // Returns once it is served if the device serves the queue's kicks itself.
  void kick(uint16_t index);
  // A notification if the device wants one for what was published.
  void kick_if_wanted(uint16_t index);
  // One chain there and back: the bytes the device says it wrote. Nothing if the ring is full or
  // the deadline passes. Only while no other chain of the queue is outstanding.
  std::optional<uint32_t> request(uint16_t index, std::span<const FakeBuffer> buffers,
                                  FakeDriver::Table table = FakeDriver::Table::kDirect,
                                  std::chrono::milliseconds patience = kPatience);

  // What the device asked of the transport.
  void needs_reset(const char* reason) override;
  void config_changed() override;
  [[nodiscard]] uint64_t needs_reset_count() const;
  [[nodiscard]] std::string needs_reset_reason() const;  // the last one
  [[nodiscard]] uint64_t config_changes() const;
  // Waits for needs_reset() or config_changed() to have been called `count` times since start().
  [[nodiscard]] bool wait_needs_reset(uint64_t count = 1,
                                      std::chrono::milliseconds patience = kPatience);
  [[nodiscard]] bool wait_config_changes(uint64_t count = 1,
                                         std::chrono::milliseconds patience = kPatience);

 private:
  struct QueueState {
    EventFd kick = EventFd::create().value();
    FakeInterrupt interrupt;
    QueueCounters counters;
    QueueKeeper keeper;
    std::unique_ptr<FakeDriver> driver;
  };
  void give_queue(uint16_t index);
  void start_queue(uint16_t index);

  const GuestMemory& x_memory;
  VirtioDevice* x_device;
  GuestHeap x_heap;
  uint64_t x_features = 0;
  uint16_t x_queue_size = 0;
  bool x_started = false;
  std::vector<std::unique_ptr<QueueState>> x_queues;

  mutable Mutex x_mutex;
  CondVar x_changed;
  uint64_t x_needs_reset LETHE_GUARDED_BY(x_mutex) = 0;
  uint64_t x_config_changes LETHE_GUARDED_BY(x_mutex) = 0;
  std::string x_needs_reset_reason LETHE_GUARDED_BY(x_mutex);
};

}  // namespace lethe
