// Virtio over PCI, modern only (virtio 1.2, 4.1): a virtio device as a PCI function.
//
// One 32-bit memory BAR of 32 KiB holds everything, a page each: common configuration, ISR status,
// device configuration, notifications (one doorbell a queue), MSI-X table, pending bits.
// A device with a shared memory region (2.10, 4.1.4.7) has a second one, 64 bit and prefetchable,
// that is the region: guests reach it without exits.
//
// Threading, and why nothing deadlocks: everything the guest does comes from vCPU threads and runs
// under the function's lock (x_mutex), also while it calls the device. device.reset() and
// stop_queue() wait for the device's I/O thread, with the lock held. So whatever an I/O thread
// calls here must not take that lock: needs_reset(), config_changed() and the queues' Interrupts
// touch atomics only (status, ISR, vectors, "configuration changed") and Msix::signal(), which
// takes no lock and never blocks. The I/O thread thus always gets on, and the vCPU thread's wait
// ends.
#pragma once

#include <linux/virtio_pci.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "devices/pci/function.h"
#include "devices/virtio/device.h"

namespace lethe {

struct VirtioPciCounters {
  std::atomic<uint64_t> registers_refused{0};  // writes the spec forbids, or of a wrong size
  std::atomic<uint64_t> needs_resets{0};       // times DEVICE_NEEDS_RESET was set
  std::atomic<uint64_t> kicks_by_exit{0};      // notifications that came without an ioeventfd
  std::atomic<uint64_t> config_interrupts{0};
};

class VirtioPciTransport final : public PciFunction, private VirtioHost {
 public:
  static constexpr uint16_t kVendor = 0x1af4;
  static constexpr uint16_t kDeviceBase = 0x1040;  // + the virtio id (4.1.2)
  static constexpr unsigned kBar = 0;
  static constexpr unsigned kSharedMemoryBar = 2;
  // The BAR's layout, in bytes.
  static constexpr uint32_t kPage = 0x1000;
  static constexpr uint32_t kCommonOffset = 0x0000;
  static constexpr uint32_t kIsrOffset = 0x1000;
  static constexpr uint32_t kDeviceOffset = 0x2000;
  static constexpr uint32_t kNotifyOffset = 0x3000;
  static constexpr uint32_t kMsixTableOffset = 0x4000;
  static constexpr uint32_t kMsixPbaOffset = 0x5000;
  static constexpr uint32_t kBarSize = 0x8000;
  static constexpr uint32_t kNotifyMultiplier = 4;  // bytes from one queue's doorbell to the next
  // Common configuration: the UAPI's structure, then queue_notify_data and queue_reset.
  static constexpr uint32_t kCommonSize = VIRTIO_PCI_COMMON_Q_RESET + 2;

  // Vectors: one a queue and one for configuration changes. Fails when the host is out of
  // descriptors or routes. Configuration spaces above a page, and more than Msix::kVectorsMax - 1
  // queues, are programmer errors.
  [[nodiscard]] static Result<std::unique_ptr<VirtioPciTransport>> create(
      const PciEnvironment& environment, std::unique_ptr<VirtioDevice> device);
  // Resets the device if it runs.
  ~VirtioPciTransport() override;

  // Stops the device's queues and keeps their positions (pci_snapshot.cc): the device finishes what
  // is in flight, and touches the guest's memory no more. Waits for its threads.
  void freeze() override LETHE_EXCLUDES(x_mutex);
  // The queues go on where they stopped. Every interrupt that the driver may wait for is raised.
  void thaw() override LETHE_EXCLUDES(x_mutex);
  [[nodiscard]] Result<> can_save() override LETHE_EXCLUDES(x_mutex);

  [[nodiscard]] VirtioDevice& device() const { return *x_device; }
  [[nodiscard]] uint16_t queues() const { return static_cast<uint16_t>(x_lines.size()); }
  [[nodiscard]] const VirtioPciCounters& counters() const { return x_counters; }
  [[nodiscard]] const QueueCounters& queue_counters(uint16_t queue) const {
    return x_lines[queue]->counters;
  }
  // VIRTIO_CONFIG_S_* now. Any thread.
  [[nodiscard]] uint8_t status() const { return x_status.load(std::memory_order_acquire); }
  // Whether the device owns the queue now.
  [[nodiscard]] bool queue_live(uint16_t queue) const LETHE_EXCLUDES(x_mutex);

 private:
  // What a queue shares with the device's threads: atomics and the kick, no lock.
  struct QueueLine final : Interrupt {
    QueueLine(VirtioPciTransport& owner, EventFd event)
        : transport(owner), kick(std::move(event)) {}
    void signal() override;
    VirtioPciTransport& transport;
    std::atomic<uint16_t> vector{VIRTIO_MSI_NO_VECTOR};
    EventFd kick;
    QueueCounters counters;
    QueueKeeper keeper;
  };
  struct QueueRegisters {
    uint16_t size = 0;
    bool enabled = false;
    bool live = false;                 // the device owns it
    std::optional<uint64_t> doorbell;  // the address bound to the kick
    uint64_t desc = 0;
    uint64_t driver = 0;
    uint64_t device = 0;
  };

  VirtioPciTransport(const PciEnvironment& environment, std::unique_ptr<VirtioDevice> device);
  [[nodiscard]] Result<> initialize() LETHE_EXCLUDES(x_mutex);
  void add_capabilities() LETHE_REQUIRES(x_mutex);
  uint8_t add_virtio_capability(uint8_t type, uint32_t offset, uint32_t length)
      LETHE_REQUIRES(x_mutex);

  void add_shared_memory_capability() LETHE_REQUIRES(x_mutex);

  // VirtioHost: any thread, no lock.
  void needs_reset(const char* reason) override;
  void config_changed() override;
  void config_interrupt();

  // PciFunction's hooks.
  void bar_read(unsigned bar, uint64_t offset, std::span<uint8_t> data) override
      LETHE_REQUIRES(x_mutex);
  void bar_write(unsigned bar, uint64_t offset, std::span<const uint8_t> data) override
      LETHE_REQUIRES(x_mutex);
  void bar_mapped(unsigned bar, uint64_t address) override LETHE_REQUIRES(x_mutex);
  void bar_unmapping(unsigned bar) override LETHE_REQUIRES(x_mutex);
  void config_reading(uint16_t offset, size_t size) override LETHE_REQUIRES(x_mutex);
  void config_written(uint16_t offset, size_t size) override LETHE_REQUIRES(x_mutex);

  // VIRTIO_PCI_CAP_PCI_CFG: the access it describes, if it is a valid one.
  struct Window {
    uint32_t offset = 0;
    uint32_t length = 0;
  };
  [[nodiscard]] std::optional<Window> pci_cfg_window() const LETHE_REQUIRES(x_mutex);

  // Common configuration.
  [[nodiscard]] std::array<uint8_t, kCommonSize> common_snapshot() LETHE_REQUIRES(x_mutex);
  // False: not a register that may be written now, or not in this size; nothing changed.
  bool write_common(uint64_t offset, std::span<const uint8_t> data) LETHE_REQUIRES(x_mutex);
  bool write_queue_register(uint64_t field, uint32_t value) LETHE_REQUIRES(x_mutex);
  bool write_driver_feature(uint32_t value) LETHE_REQUIRES(x_mutex);
  bool write_status(uint8_t value) LETHE_REQUIRES(x_mutex);
  bool write_queue_size(uint32_t value) LETHE_REQUIRES(x_mutex);
  bool enable_queue(uint32_t value) LETHE_REQUIRES(x_mutex);
  bool reset_queue(uint32_t value) LETHE_REQUIRES(x_mutex);
  [[nodiscard]] uint16_t valid_vector(uint32_t value) const;
  [[nodiscard]] uint64_t offered_features() const;
  [[nodiscard]] bool acceptable_features(uint64_t features) const;

  // Device configuration.
  void refresh_config() LETHE_REQUIRES(x_mutex);
  bool write_device_config(uint64_t offset, std::span<const uint8_t> data) LETHE_REQUIRES(x_mutex);

  // Life cycle.
  void go_live() LETHE_REQUIRES(x_mutex);
  [[nodiscard]] Result<std::unique_ptr<Queue>> make_queue(uint16_t index) LETHE_REQUIRES(x_mutex);
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue) LETHE_REQUIRES(x_mutex);
  void set_queue_defaults(uint16_t index) LETHE_REQUIRES(x_mutex);
  void reset_device() LETHE_REQUIRES(x_mutex);
  void bind_doorbell(uint16_t index) LETHE_REQUIRES(x_mutex);
  void unbind_doorbell(uint16_t index) LETHE_REQUIRES(x_mutex);
  bool kick(uint64_t offset) LETHE_REQUIRES(x_mutex);

  // Snapshots.
  void save_device(StateWriter& to) override LETHE_REQUIRES(x_mutex);
  void restore_device(StateReader& from) override LETHE_REQUIRES(x_mutex);
  void go_on() LETHE_REQUIRES(x_mutex);
  void start_kept_queue(uint16_t index) LETHE_REQUIRES(x_mutex);
  void save_registers(StateWriter& to) const LETHE_REQUIRES(x_mutex);
  void restore_registers(StateReader& from) LETHE_REQUIRES(x_mutex);
  void restore_status(StateReader& from) LETHE_REQUIRES(x_mutex);
  void restore_queue(StateReader& from, uint16_t index) LETHE_REQUIRES(x_mutex);

  const std::unique_ptr<VirtioDevice> x_device;
  const uint32_t x_config_size;
  const std::optional<VirtioSharedMemory> x_shared_memory;
  std::vector<std::unique_ptr<QueueLine>> x_lines;  // fixed after create()
  VirtioPciCounters x_counters;

  // Shared with the device's threads.
  std::atomic<uint8_t> x_status{0};
  std::atomic<uint8_t> x_isr{0};
  std::atomic<uint16_t> x_config_vector{VIRTIO_MSI_NO_VECTOR};
  std::atomic<bool> x_config_changed{false};

  bool x_memory_bound LETHE_GUARDED_BY(x_mutex) = false;  // the region, where its BAR is mapped
  bool x_started LETHE_GUARDED_BY(x_mutex) = false;       // device.start() was called
  bool x_frozen LETHE_GUARDED_BY(x_mutex) = false;
  std::vector<QueueRegisters> x_queues LETHE_GUARDED_BY(x_mutex);
  uint32_t x_device_feature_select LETHE_GUARDED_BY(x_mutex) = 0;
  uint32_t x_driver_feature_select LETHE_GUARDED_BY(x_mutex) = 0;
  uint64_t x_driver_features LETHE_GUARDED_BY(x_mutex) = 0;
  uint16_t x_queue_select LETHE_GUARDED_BY(x_mutex) = 0;
  // What the driver sees of the device's configuration, and its generation: they change together.
  std::vector<uint8_t> x_config_seen LETHE_GUARDED_BY(x_mutex);
  uint8_t x_config_generation LETHE_GUARDED_BY(x_mutex) = 0;
  uint16_t x_pci_cfg_offset LETHE_GUARDED_BY(x_mutex) = 0;  // of the capability
};

}  // namespace lethe
