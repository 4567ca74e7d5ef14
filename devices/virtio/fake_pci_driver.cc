#include "devices/virtio/fake_pci_driver.h"

#include <algorithm>

#include "base/assert.h"

namespace lethe {

FakeVirtioDevice::FakeVirtioDevice(std::vector<uint16_t> queue_sizes, uint32_t config_size,
                                   uint16_t virtio_id)
    : x_sizes(std::move(queue_sizes)),
      x_config_size(config_size),
      x_virtio_id(virtio_id),
      x_config(config_size) {}

void FakeVirtioDevice::read_config(uint32_t offset, std::span<uint8_t> to) {
  LETHE_ASSERT(offset + to.size() <= x_config_size);
  MutexLock lock(x_mutex);
  std::copy_n(x_config.begin() + offset, to.size(), to.begin());
}

void FakeVirtioDevice::write_config(uint32_t offset, std::span<const uint8_t> from) {
  LETHE_ASSERT(offset + from.size() <= x_config_size);
  MutexLock lock(x_mutex);
  std::ranges::copy(from, x_config.begin() + offset);
}

void FakeVirtioDevice::start(uint64_t negotiated, VirtioHost& to) {
  LETHE_ASSERT(host == nullptr && queues.empty());
  features = negotiated;
  host = &to;
  if (on_start) on_start(to);
}

void FakeVirtioDevice::start_queue(uint16_t index, std::unique_ptr<Queue> queue,
                                   const EventFd& kick) {
  LETHE_ASSERT(host != nullptr && queue && index < x_sizes.size());
  LETHE_ASSERT(queues.emplace(index, std::move(queue)).second);
  kicks[index] = &kick;
}

void FakeVirtioDevice::stop_queue(uint16_t index) {
  if (on_reset) on_reset();
  LETHE_ASSERT(queues.erase(index) == 1);
  kicks.erase(index);
}

void FakeVirtioDevice::reset() {
  if (on_reset) on_reset();
  queues.clear();
  kicks.clear();
  host = nullptr;
  features = 0;
  ++resets;
}

FakePciDriver::FakePciDriver(FakeMachine& machine, uint8_t slot)
    : x_machine(machine), x_slot(slot) {
  uint8_t at = 0;
  while ((at = machine.find_capability(slot, PCI_CAP_ID_VNDR, at)) != 0) {
    const auto type = machine.config_read(slot, at + VIRTIO_PCI_CAP_CFG_TYPE, 1);
    const auto offset =
        static_cast<uint32_t>(machine.config_read(slot, at + VIRTIO_PCI_CAP_OFFSET, 4));
    const auto length =
        static_cast<uint32_t>(machine.config_read(slot, at + VIRTIO_PCI_CAP_LENGTH, 4));
    switch (type) {
      case VIRTIO_PCI_CAP_COMMON_CFG:
        common = offset;
        common_length = length;
        break;
      case VIRTIO_PCI_CAP_ISR_CFG:
        isr_at = offset;
        break;
      case VIRTIO_PCI_CAP_DEVICE_CFG:
        device_config = offset;
        device_config_length = length;
        break;
      case VIRTIO_PCI_CAP_NOTIFY_CFG:
        notifications = offset;
        notify_length = length;
        notify_multiplier =
            static_cast<uint32_t>(machine.config_read(slot, at + VIRTIO_PCI_NOTIFY_CAP_MULT, 4));
        break;
      case VIRTIO_PCI_CAP_PCI_CFG:
        pci_cfg_capability = at;
        break;
      default:
        break;
    }
  }
  msix_capability = machine.find_capability(slot, PCI_CAP_ID_MSIX);
  LETHE_ASSERT(msix_capability != 0);
  const auto flags = machine.config_read(slot, msix_capability + PCI_MSIX_FLAGS, 2);
  vectors = static_cast<uint16_t>((flags & PCI_MSIX_FLAGS_QSIZE) + 1);
  msix_table = static_cast<uint32_t>(
      machine.config_read(slot, msix_capability + PCI_MSIX_TABLE, 4) & PCI_MSIX_TABLE_OFFSET);
  msix_pba = static_cast<uint32_t>(machine.config_read(slot, msix_capability + PCI_MSIX_PBA, 4) &
                                   PCI_MSIX_PBA_OFFSET);
}

uint64_t FakePciDriver::bar() const {
  return x_machine.config_read(x_slot, PCI_BASE_ADDRESS_0, 4) & PCI_BASE_ADDRESS_MEM_MASK;
}

uint64_t FakePciDriver::doorbell(uint16_t queue) {
  set(VIRTIO_PCI_COMMON_Q_SELECT, queue, 2);
  return bar() + notifications + get(VIRTIO_PCI_COMMON_Q_NOFF, 2) * notify_multiplier;
}

void FakePciDriver::reset() {
  set(VIRTIO_PCI_COMMON_STATUS, 0, 1);
  LETHE_ASSERT(status() == 0);
}

uint64_t FakePciDriver::device_features() {
  set(VIRTIO_PCI_COMMON_DFSELECT, 0, 4);
  const uint64_t low = get(VIRTIO_PCI_COMMON_DF, 4);
  set(VIRTIO_PCI_COMMON_DFSELECT, 1, 4);
  return low | get(VIRTIO_PCI_COMMON_DF, 4) << 32;
}

bool FakePciDriver::negotiate(uint64_t features) {
  add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
  add_status(VIRTIO_CONFIG_S_DRIVER);
  set(VIRTIO_PCI_COMMON_GFSELECT, 0, 4);
  set(VIRTIO_PCI_COMMON_GF, features & 0xffff'ffff, 4);
  set(VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
  set(VIRTIO_PCI_COMMON_GF, features >> 32, 4);
  add_status(VIRTIO_CONFIG_S_FEATURES_OK);
  return (status() & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
}

QueueLayout FakePciDriver::default_layout(uint16_t index) {
  set(VIRTIO_PCI_COMMON_Q_SELECT, index, 2);
  const uint64_t place = queue_place(index);
  return {.size = static_cast<uint16_t>(get(VIRTIO_PCI_COMMON_Q_SIZE, 2)),
          .desc = GuestAddr{place},
          .driver = GuestAddr{place + 0x8000},
          .device = GuestAddr{place + 0xC000}};
}

void FakePciDriver::set_up_queue(uint16_t index, const QueueLayout& layout) {
  set(VIRTIO_PCI_COMMON_Q_SELECT, index, 2);
  set(VIRTIO_PCI_COMMON_Q_SIZE, layout.size, 2);
  set(VIRTIO_PCI_COMMON_Q_DESCLO, layout.desc.value, 4);
  set(VIRTIO_PCI_COMMON_Q_DESCHI, layout.desc.value >> 32, 4);
  set(VIRTIO_PCI_COMMON_Q_AVAILLO, layout.driver.value, 4);
  set(VIRTIO_PCI_COMMON_Q_AVAILHI, layout.driver.value >> 32, 4);
  set(VIRTIO_PCI_COMMON_Q_USEDLO, layout.device.value, 4);
  set(VIRTIO_PCI_COMMON_Q_USEDHI, layout.device.value >> 32, 4);
  set(VIRTIO_PCI_COMMON_Q_MSIX, index + 1, 2);
  set(VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
}

void FakePciDriver::enable_msix() {
  // As Linux does: on, all masked; then the entries; then open (msix_capability_init()).
  set_msix_control(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
  for (uint16_t i = 0; i < vectors; ++i) {
    x_machine.write(vector_entry(i) + PCI_MSIX_ENTRY_LOWER_ADDR, message(i).address, 4);
    x_machine.write(vector_entry(i) + PCI_MSIX_ENTRY_UPPER_ADDR, 0, 4);
    x_machine.write(vector_entry(i) + PCI_MSIX_ENTRY_DATA, message(i).data, 4);
    mask_vector(i, false);
  }
  set_msix_control(PCI_MSIX_FLAGS_ENABLE);
  set(VIRTIO_PCI_COMMON_MSIX, 0, 2);
  LETHE_ASSERT(get(VIRTIO_PCI_COMMON_MSIX, 2) == 0);
}

bool FakePciDriver::bring_up(uint64_t wanted) {
  reset();
  const uint64_t version_1 = uint64_t{1} << VIRTIO_F_VERSION_1;
  if (!negotiate((device_features() & wanted) | version_1)) return false;
  enable_msix();
  const auto queues = static_cast<uint16_t>(get(VIRTIO_PCI_COMMON_NUMQ, 2));
  for (uint16_t i = 0; i < queues; ++i) set_up_queue(i);
  add_status(VIRTIO_CONFIG_S_DRIVER_OK);
  return true;
}

}  // namespace lethe
