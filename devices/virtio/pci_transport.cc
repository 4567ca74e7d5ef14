// The function's shape, its BAR and the device's life. Registers: pci_registers.cc.
#include "devices/virtio/pci_transport.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "base/assert.h"
#include "base/log.h"

namespace lethe {
namespace {

constexpr uint64_t kRegionMask = ~uint64_t{VirtioPciTransport::kPage - 1};

// PCI Code and ID Assignment Specification 1.11: base class, subclass, interface. Guests bind
// drivers by id; the class is for lspci and for firmware that looks for disks.
uint32_t class_code(uint16_t virtio_id) {
  switch (virtio_id) {
    case VIRTIO_ID_NET:
      return 0x02'00'00;  // Ethernet controller
    case VIRTIO_ID_BLOCK:
      return 0x01'80'00;  // other mass storage
    case VIRTIO_ID_CONSOLE:
      return 0x07'80'00;  // other communication controller
    case VIRTIO_ID_VSOCK:
      return 0x07'80'00;
    case VIRTIO_ID_GPU:
      return 0x03'80'00;  // other display controller
    case VIRTIO_ID_INPUT:
      return 0x09'80'00;  // other input controller
    default:
      return 0xff'00'00;  // no class fits
  }
}

PciIdentity identity(uint16_t virtio_id) {
  return {.vendor = VirtioPciTransport::kVendor,
          .device = static_cast<uint16_t>(VirtioPciTransport::kDeviceBase + virtio_id),
          .revision = 1,  // 4.1.2.1: 1 or higher without a legacy interface
          .class_code = class_code(virtio_id),
          .subsystem_vendor = VirtioPciTransport::kVendor,
          .subsystem = 0x40};  // 4.1.2.1: 0x40 or higher, likewise
}

}  // namespace

VirtioPciTransport::VirtioPciTransport(const PciEnvironment& environment,
                                       std::unique_ptr<VirtioDevice> device)
    : PciFunction(environment, identity(device->virtio_id()), device->name()),
      x_device(std::move(device)),
      x_config_size(x_device->config_size()),
      x_shared_memory(x_device->shared_memory()) {}

Result<std::unique_ptr<VirtioPciTransport>> VirtioPciTransport::create(
    const PciEnvironment& environment, std::unique_ptr<VirtioDevice> device) {
  std::unique_ptr<VirtioPciTransport> transport(
      new VirtioPciTransport(environment, std::move(device)));
  LETHE_TRY(transport->initialize());
  return transport;
}

Result<> VirtioPciTransport::initialize() {
  const auto sizes = x_device->queue_sizes_max();
  // Bits 24 to 49 are the queues' and the transport's (2.2): the device can't promise those.
  LETHE_ASSERT((x_device->device_features() & 0x0003'ffff'ff00'0000) == 0);
  LETHE_ASSERT(!sizes.empty() && sizes.size() < Msix::kVectorsMax && x_config_size <= kPage);
  MutexLock lock(x_mutex);
  x_queues.resize(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    LETHE_ASSERT(std::has_single_bit(sizes[i]) && sizes[i] <= kQueueSizeMax);
    LETHE_TRY_ASSIGN(EventFd event, EventFd::create());
    x_lines.push_back(std::make_unique<QueueLine>(*this, std::move(event)));
    set_queue_defaults(static_cast<uint16_t>(i));
  }
  x_config_seen.resize(x_config_size);
  x_device->read_config(0, x_config_seen);
  x_config.add_bar(kBar, kBarSize, PciBarKind::kMemory32);
  if (x_shared_memory)
    x_config.add_bar(kSharedMemoryBar, x_shared_memory->bytes, PciBarKind::kMemory64, true);
  LETHE_TRY(
      add_msix(static_cast<uint16_t>(sizes.size() + 1), kBar, kMsixTableOffset, kMsixPbaOffset));
  add_capabilities();
  return {};
}

VirtioPciTransport::~VirtioPciTransport() {
  unmap_bars();
  MutexLock lock(x_mutex);
  reset_device();
}

// --- capabilities (4.1.4)

uint8_t VirtioPciTransport::add_virtio_capability(uint8_t type, uint32_t offset, uint32_t length) {
  // As large as the largest of them: notify has its multiplier and PCI_CFG its data after the rest.
  struct {
    virtio_pci_cap cap{};
    uint32_t last = 0;
  } wire;
  static_assert(sizeof wire == sizeof(virtio_pci_notify_cap));
  static_assert(sizeof wire == sizeof(virtio_pci_cfg_cap));
  const bool longer = type == VIRTIO_PCI_CAP_NOTIFY_CFG || type == VIRTIO_PCI_CAP_PCI_CFG;
  wire.cap.cap_len = static_cast<uint8_t>(longer ? sizeof wire : sizeof wire.cap);
  wire.cap.cfg_type = type;
  wire.cap.bar = kBar;
  wire.cap.offset = offset;
  wire.cap.length = length;
  if (type == VIRTIO_PCI_CAP_NOTIFY_CFG) wire.last = kNotifyMultiplier;
  std::array<uint8_t, sizeof wire> bytes{};
  std::memcpy(bytes.data(), &wire, sizeof wire);
  std::array<uint8_t, sizeof wire> writable{};
  if (type == VIRTIO_PCI_CAP_PCI_CFG) {
    // The driver writes bar, offset, length and the data (4.1.4.9).
    writable[VIRTIO_PCI_CAP_BAR] = 0xff;
    std::fill(writable.begin() + VIRTIO_PCI_CAP_OFFSET, writable.end(), uint8_t{0xff});
  }
  // Id and next pointer are the configuration space's.
  const size_t body = wire.cap.cap_len - size_t{2};
  return x_config.add_capability(PCI_CAP_ID_VNDR, std::span(bytes).subspan(2, body),
                                 std::span(writable).subspan(2, body));
}

// 4.1.4.7: the region is the whole BAR; its length has 64 bits.
void VirtioPciTransport::add_shared_memory_capability() {
  virtio_pci_cap64 wire{};
  wire.cap.cap_len = sizeof wire;
  wire.cap.cfg_type = VIRTIO_PCI_CAP_SHARED_MEMORY_CFG;
  wire.cap.bar = kSharedMemoryBar;
  wire.cap.id = x_shared_memory->id;
  wire.cap.length = static_cast<uint32_t>(x_shared_memory->bytes);
  wire.length_hi = static_cast<uint32_t>(x_shared_memory->bytes >> 32);
  std::array<uint8_t, sizeof wire> bytes{};
  std::memcpy(bytes.data(), &wire, sizeof wire);
  x_config.add_capability(PCI_CAP_ID_VNDR, std::span(bytes).subspan(2));
}

void VirtioPciTransport::add_capabilities() {
  const auto queues = static_cast<uint32_t>(x_lines.size());
  add_virtio_capability(VIRTIO_PCI_CAP_COMMON_CFG, kCommonOffset, kCommonSize);
  add_virtio_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, kNotifyOffset, queues * kNotifyMultiplier);
  add_virtio_capability(VIRTIO_PCI_CAP_ISR_CFG, kIsrOffset, 1);
  // Only for device types that have a configuration (4.1.4.6.1).
  if (x_config_size > 0)
    add_virtio_capability(VIRTIO_PCI_CAP_DEVICE_CFG, kDeviceOffset, x_config_size);
  if (x_shared_memory) add_shared_memory_capability();
  x_pci_cfg_offset = add_virtio_capability(VIRTIO_PCI_CAP_PCI_CFG, 0, 0);
}

// 4.1.4.9: an access to pci_cfg_data does the access to the BAR that the capability describes.
std::optional<VirtioPciTransport::Window> VirtioPciTransport::pci_cfg_window() const {
  const auto cap = x_config.load<virtio_pci_cap>(x_pci_cfg_offset);
  const bool size_good = cap.length == 1 || cap.length == 2 || cap.length == 4;
  if (cap.bar != kBar || !size_good || cap.offset % cap.length != 0 || cap.offset >= kBarSize)
    return std::nullopt;
  return Window{cap.offset, cap.length};
}

void VirtioPciTransport::config_reading(uint16_t offset, size_t size) {
  const size_t data_at = x_pci_cfg_offset + offsetof(virtio_pci_cfg_cap, pci_cfg_data);
  if (offset >= data_at + 4 || offset + size <= data_at) return;
  const auto window = pci_cfg_window();
  if (!window) return;
  std::array<uint8_t, 4> data{};
  access_read(kBar, window->offset, std::span(data).first(window->length));
  x_config.store(static_cast<uint16_t>(data_at), data);
}

void VirtioPciTransport::config_written(uint16_t offset, size_t size) {
  const size_t data_at = x_pci_cfg_offset + offsetof(virtio_pci_cfg_cap, pci_cfg_data);
  if (offset >= data_at + 4 || offset + size <= data_at) return;
  const auto window = pci_cfg_window();
  if (!window) return refuse_access();
  const auto data = x_config.load<std::array<uint8_t, 4>>(static_cast<uint16_t>(data_at));
  access_write(kBar, window->offset, std::span(data).first(window->length));
}

// --- the BAR

void VirtioPciTransport::bar_read(unsigned bar, uint64_t offset, std::span<uint8_t> data) {
  if (bar == kSharedMemoryBar) {
    // SAFETY: the access lies within the BAR, which is the region; the device keeps it mapped.
    std::memcpy(data.data(), x_shared_memory->host + offset, data.size());
    return;
  }
  // Reads of any size are answered from a snapshot, byte by byte; what no register covers is 0.
  std::ranges::fill(data, uint8_t{0});
  const uint64_t at = offset & ~kRegionMask;
  const auto copy = [&](std::span<const uint8_t> from) {
    if (at < from.size())
      std::ranges::copy(from.subspan(at, std::min(data.size(), from.size() - at)), data.begin());
  };
  switch (offset & kRegionMask) {
    case kCommonOffset:
      copy(common_snapshot());
      break;
    case kIsrOffset:
      // Reading clears (4.1.4.5.1).
      if (at == 0) data[0] = x_isr.exchange(0, std::memory_order_acq_rel);
      break;
    case kDeviceOffset:
      refresh_config();
      copy(x_config_seen);
      break;
    default:
      break;
  }
}

void VirtioPciTransport::bar_write(unsigned bar, uint64_t offset, std::span<const uint8_t> data) {
  if (bar == kSharedMemoryBar) {
    // SAFETY: as in bar_read().
    std::memcpy(x_shared_memory->host + offset, data.data(), data.size());
    return;
  }
  const uint64_t at = offset & ~kRegionMask;
  bool taken = false;
  switch (offset & kRegionMask) {
    case kCommonOffset:
      taken = write_common(at, data);
      break;
    case kDeviceOffset:
      taken = write_device_config(at, data);
      break;
    case kNotifyOffset:
      taken = kick(at);
      break;
    default:
      break;
  }
  if (!taken) x_counters.registers_refused.fetch_add(1, std::memory_order_relaxed);
}

// Notifications reach this only where no ioeventfd took them: before DRIVER_OK, when binding one
// failed, through PCI_CFG, and of queues that are served while the driver waits. The address tells
// the queue; like an ioeventfd, any value will do.
bool VirtioPciTransport::kick(uint64_t offset) {
  const uint64_t index = offset / kNotifyMultiplier;
  if (offset % kNotifyMultiplier != 0 || index >= x_queues.size() || !x_queues[index].live)
    return false;
  if (x_device->serves_kicks(static_cast<uint16_t>(index)))
    x_device->kicked(static_cast<uint16_t>(index));
  else
    x_lines[index]->kick.signal();
  x_counters.kicks_by_exit.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void VirtioPciTransport::bar_mapped(unsigned bar, uint64_t address) {
  if (bar == kSharedMemoryBar) {
    const auto bound = x_environment.device_memory.bind_memory(address, x_shared_memory->bytes,
                                                               x_shared_memory->host);
    x_memory_bound = bound.has_value();
    // Then accesses exit, and bar_read() and bar_write() do them, slowly.
    if (!bound) LETHE_LOG_LIMITED(LogModule::kVirtio, "{}: {}", name(), bound.error().text);
    return;
  }
  for (size_t i = 0; i < x_queues.size(); ++i) bind_doorbell(static_cast<uint16_t>(i));
}

void VirtioPciTransport::bar_unmapping(unsigned bar) {
  if (bar == kSharedMemoryBar) {
    if (x_memory_bound) x_environment.device_memory.unbind_memory(*mapped_at(bar));
    x_memory_bound = false;
    return;
  }
  for (size_t i = 0; i < x_queues.size(); ++i) unbind_doorbell(static_cast<uint16_t>(i));
}

// Bound exactly while the queue is live and the BAR is mapped: binding is a system call a queue,
// and most machines are built with more queues than their guests use.
void VirtioPciTransport::bind_doorbell(uint16_t index) {
  QueueRegisters& queue = x_queues[index];
  const auto bar = mapped_at(kBar);
  if (!queue.live || queue.doorbell || !bar || x_device->serves_kicks(index)) return;
  const uint64_t address = *bar + kNotifyOffset + index * kNotifyMultiplier;
  if (auto bound = x_environment.doorbells.bind_doorbell(address, x_lines[index]->kick); !bound) {
    // kick() serves the queue, slower.
    LETHE_LOG_LIMITED(LogModule::kVirtio, "{}: queue {}: {}", name(), index, bound.error().text);
    return;
  }
  queue.doorbell = address;
}

void VirtioPciTransport::unbind_doorbell(uint16_t index) {
  QueueRegisters& queue = x_queues[index];
  if (!queue.doorbell) return;
  x_environment.doorbells.unbind_doorbell(*queue.doorbell, x_lines[index]->kick);
  queue.doorbell.reset();
}

// --- the device's life

bool VirtioPciTransport::queue_live(uint16_t queue) const {
  MutexLock lock(x_mutex);
  return x_queues[queue].live;
}

Result<std::unique_ptr<Queue>> VirtioPciTransport::make_queue(uint16_t index) {
  const QueueRegisters& queue = x_queues[index];
  const QueueLayout layout{.size = queue.size,
                           .desc = GuestAddr{queue.desc},
                           .driver = GuestAddr{queue.driver},
                           .device = GuestAddr{queue.device}};
  QueueLine& line = *x_lines[index];
  return Queue::create(x_environment.memory, layout, x_driver_features, line, line.counters,
                       &line.keeper);
}

void VirtioPciTransport::start_queue(uint16_t index, std::unique_ptr<Queue> queue) {
  x_queues[index].live = true;
  x_device->start_queue(index, std::move(queue), x_lines[index]->kick);
  bind_doorbell(index);
}

// DRIVER_OK is in the status already: the device's thread may interrupt from start() on.
void VirtioPciTransport::go_live() {
  // All queues or none: a device with a queue missing would be half alive.
  std::vector<std::unique_ptr<Queue>> queues(x_queues.size());
  for (uint16_t i = 0; i < queues.size(); ++i) {
    if (!x_queues[i].enabled) continue;
    auto queue = make_queue(i);
    if (!queue) return needs_reset(queue.error().text.c_str());
    queues[i] = std::move(*queue);
  }
  x_device->start(x_driver_features, *this);
  x_started = true;
  for (uint16_t i = 0; i < queues.size(); ++i)
    if (queues[i]) start_queue(i, std::move(queues[i]));
}

void VirtioPciTransport::set_queue_defaults(uint16_t index) {
  x_queues[index] = {};
  x_queues[index].size = x_device->queue_sizes_max()[index];
  x_lines[index]->vector.store(VIRTIO_MSI_NO_VECTOR, std::memory_order_release);
  x_lines[index]->keeper.position = {};
}

// The status is 0 only when all this is done; meanwhile the lock keeps other vCPUs from reading it
// (4.1.4.3.1: the driver waits for 0).
void VirtioPciTransport::reset_device() {
  for (uint16_t i = 0; i < x_queues.size(); ++i) unbind_doorbell(i);
  if (x_started) x_device->reset();
  x_started = false;
  // From here on the device calls nothing of VirtioHost and signals no queue.
  for (uint16_t i = 0; i < x_queues.size(); ++i) set_queue_defaults(i);
  x_device_feature_select = 0;
  x_driver_feature_select = 0;
  x_driver_features = 0;
  x_queue_select = 0;
  x_config_vector.store(VIRTIO_MSI_NO_VECTOR, std::memory_order_release);
  x_isr.store(0, std::memory_order_release);
  x_config_changed.store(true, std::memory_order_release);  // the reset may have changed it
  x_status.store(0, std::memory_order_release);
}

// --- from the device's threads: atomics only

void VirtioPciTransport::QueueLine::signal() {
  // Only without MSI-X does the queue bit of the ISR status mean anything (4.1.4.5.1).
  if (!transport.x_msix->enabled())
    transport.x_isr.fetch_or(1, std::memory_order_acq_rel);
  else
    transport.x_msix->signal(vector.load(std::memory_order_acquire));
}

void VirtioPciTransport::needs_reset(const char* reason) {
  const uint8_t before = x_status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, std::memory_order_acq_rel);
  if ((before & VIRTIO_CONFIG_S_NEEDS_RESET) != 0) return;
  x_counters.needs_resets.fetch_add(1, std::memory_order_relaxed);
  LETHE_LOG_LIMITED(LogModule::kVirtio, "{}: needs reset: {}", name(), reason);
  if ((before & VIRTIO_CONFIG_S_DRIVER_OK) != 0) config_interrupt();
}

void VirtioPciTransport::config_changed() {
  x_config_changed.store(true, std::memory_order_release);
  if ((status() & VIRTIO_CONFIG_S_DRIVER_OK) != 0) config_interrupt();
}

void VirtioPciTransport::config_interrupt() {
  // The ISR bit is set with MSI-X as well (4.1.4.5.1).
  x_isr.fetch_or(VIRTIO_PCI_ISR_CONFIG, std::memory_order_acq_rel);
  x_counters.config_interrupts.fetch_add(1, std::memory_order_relaxed);
  x_msix->signal(x_config_vector.load(std::memory_order_acquire));
}

}  // namespace lethe
