// VirtioPciTransport's registers: common configuration (virtio 1.2, 4.1.4.3) and device
// configuration (4.1.4.6).
//
// Writes are taken only in the size of the field (4.1.3.1); 64-bit fields as two 32-bit halves.
// Anything else changes nothing and is counted.
#include <algorithm>
#include <bit>
#include <cstring>

#include "devices/virtio/pci_transport.h"

namespace lethe {
namespace {

constexpr uint8_t kDriverStatusBits = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                                      VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK |
                                      VIRTIO_CONFIG_S_FAILED;
constexpr uint64_t kVersion1 = uint64_t{1} << VIRTIO_F_VERSION_1;
constexpr uint64_t kRingReset = uint64_t{1} << VIRTIO_F_RING_RESET;
constexpr uint64_t kTransportFeatures = kVersion1 | kRingReset |
                                        uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC |
                                        uint64_t{1} << VIRTIO_RING_F_EVENT_IDX;

// A field by its offset and size, so that an access of another size is no field at all.
constexpr uint64_t field(uint64_t offset, size_t size) { return offset << 4 | size; }

constexpr uint32_t half(uint64_t features, uint32_t select) {
  return select < 2 ? static_cast<uint32_t>(features >> (32 * select)) : 0;
}

void set_half(uint64_t& address, bool high, uint32_t value) {
  address = high ? (address & 0xffff'ffff) | uint64_t{value} << 32
                 : (address & ~uint64_t{0xffff'ffff}) | value;
}

}  // namespace

uint64_t VirtioPciTransport::offered_features() const {
  return x_device->device_features() | kTransportFeatures;
}

bool VirtioPciTransport::acceptable_features(uint64_t features) const {
  return (features & ~offered_features()) == 0 && (features & kVersion1) != 0;
}

std::array<uint8_t, VirtioPciTransport::kCommonSize> VirtioPciTransport::common_snapshot() {
  refresh_config();
  struct {
    virtio_pci_common_cfg cfg{};
    uint16_t queue_notify_data = 0;
    uint16_t queue_reset = 0;  // always done by the time it can be read
  } wire;
  static_assert(sizeof wire == kCommonSize);
  auto& cfg = wire.cfg;
  cfg.device_feature_select = x_device_feature_select;
  cfg.device_feature = half(offered_features(), x_device_feature_select);
  cfg.guest_feature_select = x_driver_feature_select;
  cfg.guest_feature = half(x_driver_features, x_driver_feature_select);
  cfg.msix_config = x_config_vector.load(std::memory_order_relaxed);
  cfg.num_queues = static_cast<uint16_t>(x_queues.size());
  cfg.device_status = status();
  cfg.config_generation = x_config_generation;
  cfg.queue_select = x_queue_select;
  // A queue that is not there reads 0, also as its size (4.1.4.3.1).
  if (x_queue_select < x_queues.size()) {
    const QueueRegisters& queue = x_queues[x_queue_select];
    cfg.queue_size = queue.size;
    cfg.queue_msix_vector = x_lines[x_queue_select]->vector.load(std::memory_order_relaxed);
    cfg.queue_enable = queue.enabled ? 1 : 0;
    cfg.queue_notify_off = x_queue_select;
    cfg.queue_desc_lo = half(queue.desc, 0);
    cfg.queue_desc_hi = half(queue.desc, 1);
    cfg.queue_avail_lo = half(queue.driver, 0);
    cfg.queue_avail_hi = half(queue.driver, 1);
    cfg.queue_used_lo = half(queue.device, 0);
    cfg.queue_used_hi = half(queue.device, 1);
    wire.queue_notify_data = x_queue_select;
  }
  std::array<uint8_t, kCommonSize> bytes;
  std::memcpy(bytes.data(), &wire, sizeof wire);
  return bytes;
}

bool VirtioPciTransport::write_common(uint64_t offset, std::span<const uint8_t> data) {
  if (data.size() > 4) return false;
  uint32_t value = 0;
  std::memcpy(&value, data.data(), data.size());
  const uint64_t at = field(offset, data.size());
  switch (at) {
    case field(VIRTIO_PCI_COMMON_DFSELECT, 4):
      x_device_feature_select = value;
      return true;
    case field(VIRTIO_PCI_COMMON_GFSELECT, 4):
      x_driver_feature_select = value;
      return true;
    case field(VIRTIO_PCI_COMMON_GF, 4):
      return write_driver_feature(value);
    case field(VIRTIO_PCI_COMMON_MSIX, 2):
      x_config_vector.store(valid_vector(value), std::memory_order_release);
      return true;
    case field(VIRTIO_PCI_COMMON_STATUS, 1):
      return write_status(static_cast<uint8_t>(value));
    case field(VIRTIO_PCI_COMMON_Q_SELECT, 2):
      x_queue_select = static_cast<uint16_t>(value);
      return true;
    default:
      return x_queue_select < x_queues.size() && write_queue_register(at, value);
  }
}

bool VirtioPciTransport::write_queue_register(uint64_t at, uint32_t value) {
  QueueRegisters& queue = x_queues[x_queue_select];
  switch (at) {
    case field(VIRTIO_PCI_COMMON_Q_MSIX, 2):
      // May change while the queue runs: it decides nothing but where interrupts go.
      x_lines[x_queue_select]->vector.store(valid_vector(value), std::memory_order_release);
      return true;
    case field(VIRTIO_PCI_COMMON_Q_ENABLE, 2):
      return enable_queue(value);
    case field(VIRTIO_PCI_COMMON_Q_RESET, 2):
      return reset_queue(value);
    default:
      break;
  }
  // The rest describes the ring, and is fixed once the queue is enabled (4.1.4.3.2).
  if (queue.enabled) return false;
  switch (at) {
    case field(VIRTIO_PCI_COMMON_Q_SIZE, 2):
      return write_queue_size(value);
    case field(VIRTIO_PCI_COMMON_Q_DESCLO, 4):
    case field(VIRTIO_PCI_COMMON_Q_DESCHI, 4):
      set_half(queue.desc, at == field(VIRTIO_PCI_COMMON_Q_DESCHI, 4), value);
      return true;
    case field(VIRTIO_PCI_COMMON_Q_AVAILLO, 4):
    case field(VIRTIO_PCI_COMMON_Q_AVAILHI, 4):
      set_half(queue.driver, at == field(VIRTIO_PCI_COMMON_Q_AVAILHI, 4), value);
      return true;
    case field(VIRTIO_PCI_COMMON_Q_USEDLO, 4):
    case field(VIRTIO_PCI_COMMON_Q_USEDHI, 4):
      set_half(queue.device, at == field(VIRTIO_PCI_COMMON_Q_USEDHI, 4), value);
      return true;
    default:
      return false;
  }
}

bool VirtioPciTransport::write_driver_feature(uint32_t value) {
  // Fixed with FEATURES_OK (3.1.1, step 5).
  if (x_driver_feature_select > 1 || (status() & VIRTIO_CONFIG_S_FEATURES_OK) != 0) return false;
  set_half(x_driver_features, x_driver_feature_select == 1, value);
  return true;
}

uint16_t VirtioPciTransport::valid_vector(uint32_t value) const {
  // A vector that can't be had reads back as none (4.1.5.1.2.1).
  return value < x_msix->vectors() ? static_cast<uint16_t>(value) : uint16_t{VIRTIO_MSI_NO_VECTOR};
}

bool VirtioPciTransport::write_status(uint8_t value) {
  if (value == 0) {
    reset_device();
    return true;
  }
  const uint8_t old = status();
  // Bits can't be cleared (2.1.1); what else the driver wrote still counts.
  const bool clears = (old & kDriverStatusBits & ~value) != 0;
  auto added = static_cast<uint8_t>(value & kDriverStatusBits & ~old);
  if ((added & VIRTIO_CONFIG_S_FEATURES_OK) != 0) {
    // Refused by leaving the bit clear (2.2.2, 3.1.1 step 6). Without VERSION_1 it would be a
    // legacy driver, and there is no legacy interface (6.1).
    if (!acceptable_features(x_driver_features))
      added &= static_cast<uint8_t>(~VIRTIO_CONFIG_S_FEATURES_OK);
  }
  bool refused = clears;
  const bool goes_live = (added & VIRTIO_CONFIG_S_DRIVER_OK) != 0;
  if (goes_live && (((old | added) & VIRTIO_CONFIG_S_FEATURES_OK) == 0 ||
                    (old & VIRTIO_CONFIG_S_NEEDS_RESET) != 0)) {
    added &= static_cast<uint8_t>(~VIRTIO_CONFIG_S_DRIVER_OK);
    needs_reset("DRIVER_OK without FEATURES_OK, or while a reset is due");
    refused = true;
  }
  // Not a plain store: needs_reset() may come in from another thread.
  x_status.fetch_or(added, std::memory_order_acq_rel);
  if ((added & VIRTIO_CONFIG_S_DRIVER_OK) != 0) go_live();
  return !refused;
}

bool VirtioPciTransport::write_queue_size(uint32_t value) {
  if (!std::has_single_bit(value) || value > x_device->queue_sizes_max()[x_queue_select])
    return false;
  x_queues[x_queue_select].size = static_cast<uint16_t>(value);
  return true;
}

bool VirtioPciTransport::enable_queue(uint32_t value) {
  QueueRegisters& queue = x_queues[x_queue_select];
  // Writing 0 is forbidden (4.1.4.3.2): queues end by reset only.
  if (value != 1 || queue.enabled) return false;
  queue.enabled = true;
  // Before DRIVER_OK the queue waits. After it: a queue that was reset comes back (2.6.1), or one
  // is enabled late.
  if (!x_started || (status() & VIRTIO_CONFIG_S_NEEDS_RESET) != 0) return true;
  if (auto made = make_queue(x_queue_select); made)
    start_queue(x_queue_select, std::move(*made));
  else
    needs_reset(made.error().text.c_str());
  return true;
}

bool VirtioPciTransport::reset_queue(uint32_t value) {
  const QueueRegisters& queue = x_queues[x_queue_select];
  if (value != 1 || !queue.enabled || (x_driver_features & kRingReset) == 0 ||
      (status() & VIRTIO_CONFIG_S_FEATURES_OK) == 0)
    return false;
  unbind_doorbell(x_queue_select);
  if (queue.live) x_device->stop_queue(x_queue_select);
  set_queue_defaults(x_queue_select);
  return true;
}

// --- device configuration

// The driver's view is a copy, replaced as a whole, and the generation changes with it. So a driver
// that reads generation, fields, generation (4.1.4.3.2) and finds the same one has read one state,
// however the device's own threads change theirs meanwhile.
void VirtioPciTransport::refresh_config() {
  if (!x_config_changed.exchange(false, std::memory_order_acq_rel)) return;
  x_device->read_config(0, x_config_seen);
  ++x_config_generation;
}

bool VirtioPciTransport::write_device_config(uint64_t offset, std::span<const uint8_t> data) {
  // Fields are of 1, 2 or 4 bytes, aligned, and so are the halves of longer ones (4.1.3.1).
  if (!std::has_single_bit(data.size()) || data.size() > 4 || offset % data.size() != 0 ||
      offset + data.size() > x_config_size)
    return false;
  x_device->write_config(static_cast<uint32_t>(offset), data);
  // What was written may read back as something else, here or elsewhere.
  std::vector<uint8_t> now(x_config_size);
  x_device->read_config(0, now);
  if (now == x_config_seen) return true;
  x_config_seen = std::move(now);
  ++x_config_generation;
  return true;
}

}  // namespace lethe
