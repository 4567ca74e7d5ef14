// For tests: a virtio device with nothing behind it, and a driver that finds one on PCI and brings
// it up by the steps of virtio 1.2, 3.1.1 and 4.1.5.1, as guests do.
#pragma once

#include <linux/virtio_pci.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "devices/pci/fake_machine.h"
#include "devices/virtio/device.h"

namespace lethe {

// Keeps what it was given; tests look at it and drive it.
class FakeVirtioDevice : public VirtioDevice {
 public:
  explicit FakeVirtioDevice(std::vector<uint16_t> queue_sizes = {256, 64, 16},
                            uint32_t config_size = 24, uint16_t virtio_id = VIRTIO_ID_BLOCK);

  [[nodiscard]] uint16_t virtio_id() const override { return x_virtio_id; }
  [[nodiscard]] const char* name() const override { return "fake0"; }
  [[nodiscard]] uint64_t device_features() const override { return features_offered; }
  [[nodiscard]] std::span<const uint16_t> queue_sizes_max() const override { return x_sizes; }
  [[nodiscard]] uint32_t config_size() const override { return x_config_size; }
  [[nodiscard]] std::optional<VirtioSharedMemory> shared_memory() const override { return region; }
  void read_config(uint32_t offset, std::span<uint8_t> to) override;
  void write_config(uint32_t offset, std::span<const uint8_t> from) override;
  void start(uint64_t features, VirtioHost& host) override;
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) override;
  void stop_queue(uint16_t index) override;
  void reset() override;
  [[nodiscard]] bool serves_kicks(uint16_t index) const override { return index == served_queue; }
  void kicked(uint16_t index) override {
    if (on_kicked) on_kicked(index);
  }

  [[nodiscard]] Result<> can_save() const override {
    if (cannot_save == nullptr) return {};
    return host_error("{}", cannot_save);
  }

  // Changes the configuration, from any thread. The caller tells the transport.
  void set_config(uint32_t offset, std::span<const uint8_t> from) { write_config(offset, from); }

  uint64_t features_offered = 0b110'0000;
  std::optional<VirtioSharedMemory> region;  // before the transport is made
  // What the transport said last; for the thread that plays the vCPU.
  VirtioHost* host = nullptr;
  uint64_t features = 0;
  std::map<uint16_t, std::unique_ptr<Queue>> queues;
  std::map<uint16_t, const EventFd*> kicks;
  int resets = 0;
  const char* cannot_save = nullptr;          // why, if so
  int served_queue = -1;                      // the queue whose kicks it serves itself
  std::function<void(uint16_t)> on_kicked;    // called in kicked()
  std::function<void()> on_reset;             // called first in reset() and in stop_queue()
  std::function<void(VirtioHost&)> on_start;  // called last in start()

 private:
  const std::vector<uint16_t> x_sizes;
  const uint32_t x_config_size;
  const uint16_t x_virtio_id;
  mutable Mutex x_mutex;
  std::vector<uint8_t> x_config LETHE_GUARDED_BY(x_mutex);
};

class FakePciDriver {
 public:
  // Finds the capabilities of the function in this slot.
  FakePciDriver(FakeMachine& machine, uint8_t slot);

  // Reset, features (`wanted` out of what is offered; VERSION_1 always), every queue with its
  // largest size, MSI-X with one vector each, DRIVER_OK. False if the device refused the features.
  [[nodiscard]] bool bring_up(uint64_t wanted = ~uint64_t{0});
  // The same in steps.
  void reset();
  [[nodiscard]] uint64_t device_features();
  [[nodiscard]] bool negotiate(uint64_t features);
  // Rings of queue `index`, its vector, enabled. The layout: as given, or the queue's largest size
  // at its place in memory (queue_place()).
  void set_up_queue(uint16_t index) { set_up_queue(index, default_layout(index)); }
  void set_up_queue(uint16_t index, const QueueLayout& layout);
  [[nodiscard]] QueueLayout default_layout(uint16_t index);
  void enable_msix();
  void add_status(uint8_t bits) { set(VIRTIO_PCI_COMMON_STATUS, status() | bits, 1); }
  [[nodiscard]] uint8_t status() { return static_cast<uint8_t>(get(VIRTIO_PCI_COMMON_STATUS, 1)); }
  // A guest address for the rings of a queue, far from those of other queues.
  [[nodiscard]] static uint64_t queue_place(uint16_t index) { return kMiB + index * 0x10000; }
  // What vector `index` sends once enable_msix() has set it up.
  [[nodiscard]] static MsiMessage message(uint16_t index) { return {0xFEE0'0000, 0x4000U + index}; }

  // Registers of the common configuration.
  void set(uint64_t offset, uint64_t value, size_t size) {
    x_machine.write(bar() + common + offset, value, size);
  }
  [[nodiscard]] uint64_t get(uint64_t offset, size_t size) {
    return x_machine.read(bar() + common + offset, size);
  }
  void notify(uint16_t queue) { x_machine.write(doorbell(queue), queue, 2); }
  [[nodiscard]] uint64_t doorbell(uint16_t queue);
  [[nodiscard]] uint8_t isr() { return static_cast<uint8_t>(x_machine.read(bar() + isr_at, 1)); }
  [[nodiscard]] uint64_t config(uint64_t offset, size_t size) {
    return x_machine.read(bar() + device_config + offset, size);
  }
  // The BAR's address as the configuration space has it now.
  [[nodiscard]] uint64_t bar() const;
  // Entry of the MSI-X table.
  [[nodiscard]] uint64_t vector_entry(uint16_t vector) const {
    return bar() + msix_table + vector * uint64_t{PCI_MSIX_ENTRY_SIZE};
  }
  void mask_vector(uint16_t vector, bool masked) {
    x_machine.write(vector_entry(vector) + PCI_MSIX_ENTRY_VECTOR_CTRL, masked ? 1 : 0, 4);
  }
  void set_msix_control(uint16_t control) {
    x_machine.config_write(x_slot, msix_capability + PCI_MSIX_FLAGS, control, 2);
  }

  // Where things are: offsets in the BAR, 0 if the capability is missing.
  uint32_t common = 0, isr_at = 0, device_config = 0, notifications = 0, msix_table = 0,
           msix_pba = 0;
  uint32_t common_length = 0, device_config_length = 0, notify_length = 0, notify_multiplier = 0;
  uint8_t pci_cfg_capability = 0, msix_capability = 0;
  uint16_t vectors = 0;

 private:
  FakeMachine& x_machine;
  const uint8_t x_slot;
};

}  // namespace lethe
