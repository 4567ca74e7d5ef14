#include "devices/virtio/fake_hostile_guest.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr uint8_t kSlot = 1;
constexpr uint64_t kFirstBar = 0xC000'0000;
constexpr uint64_t kVersion1 = uint64_t{1} << VIRTIO_F_VERSION_1;

struct Field {
  uint8_t offset;
  uint8_t size;
};
constexpr std::array kFields = {
    Field{VIRTIO_PCI_COMMON_DFSELECT, 4}, Field{VIRTIO_PCI_COMMON_GFSELECT, 4},
    Field{VIRTIO_PCI_COMMON_GF, 4},       Field{VIRTIO_PCI_COMMON_MSIX, 2},
    Field{VIRTIO_PCI_COMMON_STATUS, 1},   Field{VIRTIO_PCI_COMMON_Q_SELECT, 2},
    Field{VIRTIO_PCI_COMMON_Q_SIZE, 2},   Field{VIRTIO_PCI_COMMON_Q_MSIX, 2},
    Field{VIRTIO_PCI_COMMON_Q_ENABLE, 2}, Field{VIRTIO_PCI_COMMON_Q_DESCLO, 4},
    Field{VIRTIO_PCI_COMMON_Q_DESCHI, 4}, Field{VIRTIO_PCI_COMMON_Q_AVAILLO, 4},
    Field{VIRTIO_PCI_COMMON_Q_USEDLO, 4}, Field{VIRTIO_PCI_COMMON_Q_RESET, 2},
};

// Small values, edges and addresses: what registers react to, more often than 32 random bits.
uint64_t interesting(uint8_t selector, uint32_t raw) {
  switch (selector % 8) {
    case 0:
      return raw & 1;
    case 1:
      return raw & 0xff;
    case 2:
      return uint64_t{1} << (raw % 33);
    case 3:
      return ~uint64_t{0};
    case 4:
      return FakePciDriver::queue_place(static_cast<uint16_t>(raw % 3));
    case 5:
      return FakeMachine::kMemory - (raw & 0xff);
    default:
      return raw;
  }
}

}  // namespace

struct HostileGuest::Step {
  uint8_t kind = 0;
  uint8_t size = 1;  // 1 to 8
  uint16_t offset = 0;
  uint64_t value = 0;
};

HostileGuest::HostileGuest() {
  auto device = std::make_unique<FakeVirtioDevice>();
  x_device = device.get();
  auto made = VirtioPciTransport::create(x_machine.pci->environment(), std::move(device));
  LETHE_ASSERT(made);
  x_transport = made->get();
  LETHE_ASSERT(x_machine.pci->add_device(std::move(*made)).value() == kSlot);
  x_driver.emplace(x_machine, kSlot);
}

void HostileGuest::restore() {
  x_machine.config_write(kSlot, PCI_BASE_ADDRESS_0, kFirstBar, 4);
  x_machine.config_write(kSlot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
  x_driver->reset();
  x_driver->enable_msix();
  x_driver->set_msix_control(0);
  x_driver->set(VIRTIO_PCI_COMMON_MSIX, VIRTIO_MSI_NO_VECTOR, 2);
  for (uint16_t i = 0; i < x_driver->vectors; ++i) x_driver->mask_vector(i, true);
  const uint8_t cap = x_driver->pci_cfg_capability;
  for (uint8_t i = 4; i < 16; i += 4) x_machine.config_write(kSlot, cap + i, 0, 4);
  x_status = 0;
}

void HostileGuest::step(std::span<const uint8_t> input) {
  std::array<uint8_t, kStepBytes> bytes{};
  std::copy_n(input.begin(), std::min(input.size(), bytes.size()), bytes.begin());
  uint32_t raw = 0;
  std::memcpy(&raw, &bytes[4], sizeof raw);
  Step step{.kind = bytes[0],
            .size = static_cast<uint8_t>(1 + bytes[1] % 8),
            .value = interesting(static_cast<uint8_t>(bytes[1] / 8), raw)};
  std::memcpy(&step.offset, &bytes[2], sizeof step.offset);
  switch (step.kind % 8) {
    case 0:
      return access_bar(step);
    case 1:
    case 2:
      return write_register(step);
    case 3:
      return access_config(step);
    case 4:
      return access_pci_cfg(step);
    case 5:
      return move_bar(step);
    case 6:
      return say(step);
    default:
      return advance(step);
  }
}

void HostileGuest::access_bar(const Step& step) {
  const uint64_t address = x_driver->bar() + step.offset % VirtioPciTransport::kBarSize;
  if ((step.kind & 0x80) != 0)
    (void)x_machine.read(address, step.size);
  else
    x_machine.write(address, step.value, step.size);
}

void HostileGuest::write_register(const Step& step) {
  const Field& field = kFields[step.offset % kFields.size()];
  x_driver->set(field.offset, step.value, field.size);
}

void HostileGuest::access_config(const Step& step) {
  const uint64_t reg = step.offset % PciConfigSpace::kWindow;
  if ((step.kind & 0x80) != 0)
    (void)x_machine.config_read(kSlot, reg, step.size);
  else if ((step.kind & 0x40) != 0)
    x_machine.config_write(kSlot, reg, step.value, step.size);
  else
    x_machine.config_write(kSlot, reg % 256, step.value, step.size);
}

void HostileGuest::access_pci_cfg(const Step& step) {
  const uint8_t cap = x_driver->pci_cfg_capability;
  x_machine.config_write(kSlot, cap + VIRTIO_PCI_CAP_BAR, (step.kind & 0x80) != 0 ? 1 : 0, 1);
  x_machine.config_write(kSlot, cap + VIRTIO_PCI_CAP_OFFSET, step.offset, 4);
  x_machine.config_write(kSlot, cap + VIRTIO_PCI_CAP_LENGTH, step.size, 4);
  x_machine.config_write(kSlot, cap + 16, step.value, 4);
  (void)x_machine.config_read(kSlot, cap + 16, 4);
}

void HostileGuest::move_bar(const Step& step) {
  if (step.size < 3) {
    x_machine.config_write(kSlot, PCI_COMMAND, step.value, step.size);
    return;
  }
  constexpr std::array<uint64_t, 6> kPlaces = {kFirstBar,   0xD000'0000, 0xDFFF'8000,
                                               0xE000'0000, 0x10'0000,   0xFFFF'FFFF};
  x_machine.config_write(kSlot, PCI_BASE_ADDRESS_0, kPlaces[step.offset % kPlaces.size()], 4);
}

// The device's side has its say as well.
void HostileGuest::say(const Step& step) {
  if (x_device->host == nullptr) return;
  switch (step.offset % 3) {
    case 0:
      x_device->host->config_changed();
      break;
    case 1:
      if (step.size == 1) x_device->host->needs_reset("fuzzed");
      break;
    default:
      for (auto& [index, queue] : x_device->queues) {
        (void)queue->pop();
        queue->interrupt_if_needed();
      }
      break;
  }
}

// What a good driver would do, so that states behind it are reached too.
void HostileGuest::advance(const Step& step) {
  switch (step.offset % 6) {
    case 0:
      (void)x_driver->negotiate((step.kind & 0x80) != 0 ? x_driver->device_features() : kVersion1);
      break;
    case 1:
    case 2:
      x_driver->set_up_queue(static_cast<uint16_t>(step.value % 3));
      break;
    case 3:
      x_driver->add_status(VIRTIO_CONFIG_S_DRIVER_OK);
      break;
    case 4:
      x_driver->set_msix_control(static_cast<uint16_t>(step.value & 0xc000));
      break;
    default:
      if (step.size < 3) x_driver->set(VIRTIO_PCI_COMMON_STATUS, 0, 1);
      break;
  }
}

std::optional<std::string> HostileGuest::check() {
  const uint8_t status = x_transport->status();
  // Bits only come, or all go: no step does both.
  if ((x_status & ~status) != 0 && status != 0)
    return fmt::format("status went from {:#x} to {:#x}", x_status, status);
  x_status = status;
  if ((status & VIRTIO_CONFIG_S_DRIVER_OK) != 0 && (status & VIRTIO_CONFIG_S_FEATURES_OK) == 0)
    return fmt::format("DRIVER_OK without FEATURES_OK: {:#x}", status);
  if (x_device->host != nullptr && (status & VIRTIO_CONFIG_S_DRIVER_OK) == 0)
    return fmt::format("the device runs at status {:#x}", status);
  if (auto broken = check_queues()) return broken;
  if (!x_device->queues.empty()) ++x_live_steps;
  return check_registers();
}

std::optional<std::string> HostileGuest::check_queues() {
  if (x_device->host != nullptr) {
    const uint64_t offered =
        x_device->features_offered | kVersion1 | uint64_t{1} << VIRTIO_F_RING_RESET |
        uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC | uint64_t{1} << VIRTIO_RING_F_EVENT_IDX;
    if ((x_device->features & ~offered) != 0 || (x_device->features & kVersion1) == 0)
      return fmt::format("the device runs with features {:#x}", x_device->features);
  }
  const auto bar = x_transport->bar_mapped_at(VirtioPciTransport::kBar);
  if (bar && (*bar < kFirstBar || *bar > 0xE000'0000 - VirtioPciTransport::kBarSize))
    return fmt::format("the BAR is mapped at {:#x}", *bar);
  std::vector<uint64_t> expected;
  for (uint16_t i = 0; i < 3; ++i) {
    const bool live = x_transport->queue_live(i);
    if (live != x_device->queues.contains(i)) return fmt::format("queue {} live: {}", i, live);
    if (!live) continue;
    if (x_device->host == nullptr) return fmt::format("queue {} is live, the device not", i);
    const uint16_t size = x_device->queues[i]->size();
    if (!std::has_single_bit(size) || size > x_device->queue_sizes_max()[i])
      return fmt::format("queue {} has size {}", i, size);
    if (bar)
      expected.push_back(*bar + VirtioPciTransport::kNotifyOffset +
                         i * VirtioPciTransport::kNotifyMultiplier);
  }
  if (x_machine.doorbells.bound() != expected)
    return fmt::format("{} doorbells are bound, {} expected", x_machine.doorbells.bound().size(),
                       expected.size());
  return std::nullopt;
}

std::optional<std::string> HostileGuest::check_registers() {
  if (x_machine.config_read(kSlot, PCI_VENDOR_ID, 4) != 0x1042'1af4U) return "the id changed";
  // The rest as the guest would read it, if it can.
  if (!x_transport->bar_mapped_at(VirtioPciTransport::kBar)) return std::nullopt;
  const auto valid = [&](uint64_t vector) {
    return vector < x_driver->vectors || vector == VIRTIO_MSI_NO_VECTOR;
  };
  if (!valid(x_driver->get(VIRTIO_PCI_COMMON_MSIX, 2)) ||
      !valid(x_driver->get(VIRTIO_PCI_COMMON_Q_MSIX, 2)))
    return "a vector register holds a vector that is not there";
  if (x_driver->status() != x_status) return "the status register shows something else";
  if (x_driver->get(VIRTIO_PCI_COMMON_NUMQ, 2) != 3) return "the number of queues changed";
  return std::nullopt;
}

}  // namespace lethe
