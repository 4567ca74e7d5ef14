#include "kernel/virtio/transport.h"

#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr unsigned kGenerationTriesMax = 1000;

}  // namespace

void VirtioDevice::set_common64(uint16_t offset, uint64_t v) {
  set_common32(offset, static_cast<uint32_t>(v));
  set_common32(static_cast<uint16_t>(offset + 4), static_cast<uint32_t>(v >> 32));
}

// virtio 1.2, section 4.1.4.7: a virtio_pci_cap64.
void VirtioDevice::read_shared_memory(uint8_t at) {
  const auto field = [&](unsigned i) { return static_cast<uint16_t>(at + i); };
  CHECK(pci_.read8(field(2)) >= sizeof(virtio_pci_cap64));
  shared_bar_ = pci_.read8(field(4));
  shared_id_ = pci_.read8(field(5));
  const uint64_t start = pci_.read32(field(8)) | (uint64_t{pci_.read32(field(16))} << 32);
  shared_length_ = pci_.read32(field(12)) | (uint64_t{pci_.read32(field(20))} << 32);
  CHECK(shared_bar_ < kPciBars && shared_length_ != 0);
  const PciBar bar = read_bar(pci_, shared_bar_);
  CHECK(bar.is_64bit && bar.is_prefetchable);
  CHECK(start <= bar.size && shared_length_ <= bar.size - start);
  shared_ = bar.address + start;
  map_identity(shared_, shared_length_, false);
}

// virtio 1.2, section 4.1.4.
void VirtioDevice::read_capability(uint8_t at) {
  const auto offset = static_cast<uint16_t>(at);
  const uint8_t type = pci_.read8(static_cast<uint16_t>(offset + 3));
  if (type == VIRTIO_PCI_CAP_PCI_CFG) {
    has_cfg_access_ = true;
    return;
  }
  if (type == VIRTIO_PCI_CAP_SHARED_MEMORY_CFG && shared_length_ == 0) read_shared_memory(at);
  if (type < VIRTIO_PCI_CAP_COMMON_CFG || type > VIRTIO_PCI_CAP_DEVICE_CFG) return;
  const uint8_t bar_index = pci_.read8(static_cast<uint16_t>(offset + 4));
  CHECK(bar_index < kPciBars);
  const uint32_t start = pci_.read32(static_cast<uint16_t>(offset + 8));
  const uint32_t length = pci_.read32(static_cast<uint16_t>(offset + 12));
  const PciBar bar = read_bar(pci_, bar_index);
  CHECK(bar.size != 0 && !bar.is_io);
  CHECK(uint64_t{start} + length <= bar.size);
  map_identity(bar.address, bar.size, true);
  const uint64_t address = bar.address + start;
  // The first of a type is the one to use.
  if (type == VIRTIO_PCI_CAP_COMMON_CFG && common_ == 0) {
    CHECK(length >= 56);
    CHECK_EQ(start % 4, 0);
    common_ = address;
  } else if (type == VIRTIO_PCI_CAP_NOTIFY_CFG && notify_ == 0) {
    notify_ = address;
    notify_length_ = length;
    notify_multiplier_ = pci_.read32(static_cast<uint16_t>(offset + 16));
  } else if (type == VIRTIO_PCI_CAP_ISR_CFG && isr_ == 0) {
    isr_ = address;
  } else if (type == VIRTIO_PCI_CAP_DEVICE_CFG && config_ == 0) {
    config_ = address;
    config_length_ = length;
  }
}

bool VirtioDevice::open(unsigned virtio_id, unsigned index) {
  for (uint8_t slot = 0; slot < kPciSlots; ++slot) {
    const PciFunction f{slot, 0};
    if (f.read16(kPciVendorId) != kVirtioVendor) continue;
    if (f.read16(kPciDeviceId) != kVirtioDeviceBase + virtio_id) continue;
    if (index-- > 0) continue;
    *this = VirtioDevice();
    pci_ = f;
    pci_.write16(kPciCommand, kPciCommandMemory | kPciCommandBusMaster);
    for (uint8_t at = 0; (at = find_capability(pci_, kPciCapVendor, at)) != 0;) read_capability(at);
    CHECK(common_ != 0);
    CHECK(notify_ != 0);
    CHECK(isr_ != 0);
    CHECK(has_cfg_access_);
    CHECK(msix_.open(pci_) || option("msix") != nullptr);  // msix=none: QEMU's balloon has none
    return true;
  }
  return false;
}

uint64_t VirtioDevice::config64(uint32_t offset) const {
  for (unsigned i = 0; i < kGenerationTriesMax; ++i) {
    const uint8_t before = config_generation();
    const uint64_t low = config<uint32_t>(offset);
    const uint64_t high = config<uint32_t>(offset + 4);
    if (config_generation() == before) return (high << 32) | low;
  }
  check_failed(__FILE_NAME__, __LINE__, "the configuration stays the same for a while");
}

void VirtioDevice::reset() {
  set_status(0);
  CHECK_SOON(status() == 0);
}

uint64_t VirtioDevice::offered_features() {
  set_common32(VIRTIO_PCI_COMMON_DFSELECT, 1);
  const uint64_t high = common32(VIRTIO_PCI_COMMON_DF);
  set_common32(VIRTIO_PCI_COMMON_DFSELECT, 0);
  return (high << 32) | common32(VIRTIO_PCI_COMMON_DF);
}

void VirtioDevice::accept_features(uint64_t features) {
  set_common32(VIRTIO_PCI_COMMON_GFSELECT, 0);
  set_common32(VIRTIO_PCI_COMMON_GF, static_cast<uint32_t>(features));
  set_common32(VIRTIO_PCI_COMMON_GFSELECT, 1);
  set_common32(VIRTIO_PCI_COMMON_GF, static_cast<uint32_t>(features >> 32));
}

uint64_t VirtioDevice::start(uint64_t required, uint64_t optional) {
  reset();
  add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
  add_status(VIRTIO_CONFIG_S_DRIVER);
  const uint64_t offered = offered_features();
  const uint64_t needed = required | feature(VIRTIO_F_VERSION_1);
  CHECK_EQ(offered & needed, needed);
  const uint64_t accepted = needed | (offered & optional);
  accept_features(accepted);
  add_status(VIRTIO_CONFIG_S_FEATURES_OK);
  CHECK((status() & VIRTIO_CONFIG_S_FEATURES_OK) != 0);
  return accepted;
}

void VirtioDevice::notify(uint16_t queue) {
  select_queue(queue);
  const uint16_t offset = common16(VIRTIO_PCI_COMMON_Q_NOFF);
  mmio_write<uint16_t>(notify_ + uint64_t{offset} * notify_multiplier_, queue);
}

}  // namespace kernel
