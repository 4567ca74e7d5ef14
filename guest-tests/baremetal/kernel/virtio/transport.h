// The driver's side of virtio 1.2 over PCI (section 4.1). Thin on purpose: guests that misbehave
// use the same register accessors as those that do not.
#pragma once

#include <linux/virtio_config.h>
#define VIRTIO_PCI_NO_LEGACY
#include <linux/virtio_pci.h>
#include <stdint.h>

#include "kernel/cpu.h"
#include "kernel/pci.h"

// Newer than the UAPI headers of Debian 12. virtio 1.2, section 6.
#ifndef VIRTIO_F_RING_RESET
#define VIRTIO_F_RING_RESET 40
#endif
#ifndef VIRTIO_PCI_COMMON_Q_RESET
#define VIRTIO_PCI_COMMON_Q_NDATA 56
#define VIRTIO_PCI_COMMON_Q_RESET 58
#endif

namespace kernel {

constexpr uint64_t feature(unsigned bit) { return uint64_t{1} << bit; }
inline constexpr uint16_t kVirtioVendor = 0x1af4;
inline constexpr uint16_t kVirtioDeviceBase = 0x1040;

class VirtioDevice {
 public:
  // The index-th device with this virtio id (linux/virtio_ids.h). False if there is none. Checks
  // the capabilities, and turns memory decoding and bus mastering on.
  bool open(unsigned virtio_id, unsigned index = 0);

  const PciFunction& pci() const { return pci_; }
  Msix& msix() { return msix_; }

  // Registers of the common configuration, by VIRTIO_PCI_COMMON_* offset, at their natural width.
  uint8_t common8(uint16_t offset) const { return mmio_read<uint8_t>(common_ + offset); }
  uint16_t common16(uint16_t offset) const { return mmio_read<uint16_t>(common_ + offset); }
  uint32_t common32(uint16_t offset) const { return mmio_read<uint32_t>(common_ + offset); }
  void set_common8(uint16_t offset, uint8_t v) { mmio_write<uint8_t>(common_ + offset, v); }
  void set_common16(uint16_t offset, uint16_t v) { mmio_write<uint16_t>(common_ + offset, v); }
  void set_common32(uint16_t offset, uint32_t v) { mmio_write<uint32_t>(common_ + offset, v); }
  void set_common64(uint16_t offset, uint64_t v);

  uint64_t common_address() const { return common_; }
  uint64_t notify_address() const { return notify_; }
  uint32_t notify_multiplier() const { return notify_multiplier_; }
  uint32_t notify_length() const { return notify_length_; }
  uint64_t isr_address() const { return isr_; }
  uint64_t config_address() const { return config_; }
  uint32_t config_length() const { return config_length_; }
  // The shared memory region (section 4.1.4.7), mapped; length 0: there is none.
  uint64_t shared_address() const { return shared_; }
  uint64_t shared_length() const { return shared_length_; }
  uint8_t shared_id() const { return shared_id_; }
  unsigned shared_bar() const { return shared_bar_; }

  template <typename T>
  T config(uint32_t offset) const {
    return mmio_read<T>(config_ + offset);
  }
  // Two halves, stable by the generation (section 2.5.3).
  uint64_t config64(uint32_t offset) const;
  uint8_t config_generation() const { return common8(VIRTIO_PCI_COMMON_CFGGENERATION); }

  uint8_t status() const { return common8(VIRTIO_PCI_COMMON_STATUS); }
  void set_status(uint8_t v) { set_common8(VIRTIO_PCI_COMMON_STATUS, v); }
  void add_status(uint8_t bits) { set_status(static_cast<uint8_t>(status() | bits)); }
  // Section 2.4.2: the driver waits until the status reads zero.
  void reset();
  uint64_t offered_features();
  void accept_features(uint64_t features);
  // Reset, ACKNOWLEDGE, DRIVER, features (all of `required` and what is offered of `optional`),
  // FEATURES_OK. Returns what is in force; a device that refuses fails a CHECK.
  uint64_t start(uint64_t required, uint64_t optional = 0);
  void driver_ok() { add_status(VIRTIO_CONFIG_S_DRIVER_OK); }
  bool needs_reset() const { return (status() & VIRTIO_CONFIG_S_NEEDS_RESET) != 0; }

  unsigned queue_count() const { return common16(VIRTIO_PCI_COMMON_NUMQ); }
  void select_queue(uint16_t queue) { set_common16(VIRTIO_PCI_COMMON_Q_SELECT, queue); }
  void notify(uint16_t queue);

 private:
  void read_capability(uint8_t at);
  void read_shared_memory(uint8_t at);

  PciFunction pci_;
  Msix msix_;
  uint64_t common_ = 0;
  uint64_t notify_ = 0;
  uint64_t isr_ = 0;
  uint64_t config_ = 0;
  uint32_t config_length_ = 0;
  uint32_t notify_length_ = 0;
  uint32_t notify_multiplier_ = 0;
  uint64_t shared_ = 0;
  uint64_t shared_length_ = 0;
  uint8_t shared_id_ = 0;
  unsigned shared_bar_ = 0;
  bool has_cfg_access_ = false;
};

}  // namespace kernel
