#include "devices/pci/pci_bus.h"

#include <algorithm>
#include <cstring>

namespace lethe {
namespace {

constexpr uint64_t kPortsSize = 8;
constexpr uint64_t kResetControlOffset = PciBus::kResetControl - PciBus::kPortsStart;
constexpr uint64_t kDataOffset = 4;
constexpr uint32_t kAddressEnable = 0x8000'0000;
constexpr uint32_t kAddressBits = 0x80ff'fffc;  // enable, bus, slot, function, dword

// 1b36:0008 is the id of QEMU's generic PCI Express host bridge: a bridge that has nothing but its
// class, for which guests need no driver and know no quirks.
constexpr PciIdentity kHostBridge{
    .vendor = 0x1b36, .device = 0x0008, .revision = 0, .class_code = 0x06'00'00};

class HostBridge final : public PciFunction {
 public:
  explicit HostBridge(const PciEnvironment& environment)
      : PciFunction(environment, kHostBridge, "host bridge") {}
};

std::optional<uint64_t> take(const BusRange& window, uint64_t& used, uint64_t size) {
  // Natural alignment of the address, not of the offset: the window may start anywhere.
  const uint64_t mask = size - 1;
  const uint64_t start = (window.start + used + mask) & ~mask;
  const uint64_t offset = start - window.start;
  if (offset > window.size || size > window.size - offset) return std::nullopt;
  used = offset + size;
  return start;
}

}  // namespace

PciBus::PciBus(Bus& ports, const PciEnvironment& environment)
    : x_ports_bus(ports), x_environment(environment) {
  x_functions[0] = std::make_unique<HostBridge>(x_environment);
}

PciBus::~PciBus() {
  // In the order they came: a device may use those that come behind it (virtio-gpu its keyboard).
  for (auto& function : x_functions) function.reset();
  if (x_ecam_attached) x_environment.mmio.remove(kEcamStart);
  if (x_ports_attached) x_ports_bus.remove(kPortsStart);
}

Result<> PciBus::attach() {
  LETHE_TRY(x_environment.mmio.add({kEcamStart, kEcamSize}, x_ecam));
  x_ecam_attached = true;
  LETHE_TRY(x_ports_bus.add({kPortsStart, kPortsSize}, x_ports));
  x_ports_attached = true;
  return {};
}

Result<uint8_t> PciBus::add_device(std::unique_ptr<PciFunction> function) {
  const auto free = std::ranges::find_if(x_functions, [](const auto& taken) { return !taken; });
  if (free == x_functions.end())
    return config_error("{}: all {} PCI slots are used", function->name(), kSlots - 1);
  LETHE_TRY(place_bars(*function));
  function->enable();
  *free = std::move(function);
  return static_cast<uint8_t>(free - x_functions.begin());
}

Result<> PciBus::place_bars(PciFunction& function) {
  for (unsigned bar = 0; bar < PciConfigSpace::kBars; ++bar) {
    const uint64_t size = function.bar_size(bar);
    if (size == 0) continue;
    const auto address = allocate(size, function.bar_kind(bar), function.bar_prefetchable(bar));
    if (!address)
      return host_error("{}: no PCI window has {} bytes left for BAR {}", function.name(), size,
                        bar);
    function.set_bar_address(bar, *address);
  }
  return {};
}

std::optional<uint64_t> PciBus::allocate(uint64_t size, PciBarKind kind, bool prefetchable) {
  // Memory, that is; large: the low window is for registers.
  if (kind == PciBarKind::kMemory64 && prefetchable)
    if (const auto high = take(x_environment.windows.high, x_high_used, size)) return high;
  const auto low = take(x_environment.windows.low, x_low_used, size);
  if (low || kind == PciBarKind::kMemory32) return low;
  return take(x_environment.windows.high, x_high_used, size);
}

void PciBus::freeze() {
  for (const auto& function : x_functions)
    if (function) function->freeze();
}

void PciBus::thaw() {
  for (const auto& function : x_functions)
    if (function) function->thaw();
}

Result<> PciBus::can_save() {
  for (const auto& function : x_functions)
    if (function) LETHE_TRY(function->can_save());
  return {};
}

void PciBus::save(StateWriter& to) {
  to.begin_section("pci", 1);
  to.number(x_ports.address.load(std::memory_order_relaxed));
  for (const auto& function : x_functions)
    if (function) function->save(to);
  to.end_section();
}

Result<> PciBus::restore(StateReader& from) {
  from.begin_section("pci", 1);
  x_ports.address.store(from.number<uint32_t>() & kAddressBits, std::memory_order_relaxed);
  for (const auto& function : x_functions) {
    if (!function) continue;
    LETHE_TRY(function->restore(from));
    // The guest may have given one function the place that another has here: now it is free.
    for (const auto& other : x_functions)
      if (other) other->retry_bars();
  }
  from.end_section();
  return from.check();
}

PciFunction* PciBus::target(uint64_t offset, size_t size) {
  const uint64_t slot = offset >> 15;
  const uint64_t function = offset >> 12 & 7;
  const uint64_t reg = offset % PciConfigSpace::kWindow;
  const bool fits = slot < kSlots && function == 0 && reg + size <= PciConfigSpace::kWindow;
  PciFunction* const found = fits ? x_functions[slot].get() : nullptr;
  if (found == nullptr) x_unclaimed.fetch_add(1, std::memory_order_relaxed);
  return found;
}

void PciBus::config_read(uint64_t offset, std::span<uint8_t> data) {
  if (PciFunction* const function = target(offset, data.size()))
    return function->config_read(static_cast<uint16_t>(offset % PciConfigSpace::kWindow), data);
  // No one answers: a master abort reads all ones.
  std::ranges::fill(data, uint8_t{0xff});
}

void PciBus::config_write(uint64_t offset, std::span<const uint8_t> data) {
  PciFunction* const function = target(offset, data.size());
  if (function == nullptr) return;
  const auto reg = static_cast<uint16_t>(offset % PciConfigSpace::kWindow);
  if (!function->config_write(reg, data)) return;
  // Its old place may be where another one was moved to before. Each function takes its own lock
  // and drops it again, so there is no order of locks to keep.
  for (const auto& other : x_functions)
    if (other) other->retry_bars();
}

void PciBus::Ecam::bus_read(uint64_t offset, std::span<uint8_t> data) {
  bus.config_read(offset, data);
}

void PciBus::Ecam::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  bus.config_write(offset, data);
}

std::optional<uint64_t> PciBus::Ports::target(uint64_t port_offset) const {
  const uint32_t latched = address.load(std::memory_order_relaxed);
  if (port_offset < kDataOffset || (latched & kAddressEnable) == 0) return std::nullopt;
  if ((latched >> 16 & 0xff) != 0) return std::nullopt;  // another bus
  // Bits 15 to 8: slot and function; 7 to 2: the dword; the port's low bits: the byte in it.
  return uint64_t{latched >> 8 & 0xff} << 12 | (latched & 0xfc) | (port_offset - kDataOffset);
}

void PciBus::Ports::bus_read(uint64_t offset, std::span<uint8_t> data) {
  if (offset == kResetControlOffset && data.size() == 1 && bus.x_reset_control != nullptr)
    return bus.x_reset_control->bus_read(0, data);
  if (offset == 0 && data.size() == 4) {
    const uint32_t latched = address.load(std::memory_order_relaxed);
    std::memcpy(data.data(), &latched, sizeof latched);
  } else if (const auto at = target(offset)) {
    bus.config_read(*at, data);
  } else {
    std::ranges::fill(data, uint8_t{0xff});
  }
}

void PciBus::Ports::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  if (offset == kResetControlOffset && data.size() == 1 && bus.x_reset_control != nullptr)
    return bus.x_reset_control->bus_write(0, data);
  if (offset == 0 && data.size() == 4) {
    uint32_t latched = 0;
    std::memcpy(&latched, data.data(), sizeof latched);
    address.store(latched & kAddressBits, std::memory_order_relaxed);
  } else if (const auto at = target(offset)) {
    bus.config_write(*at, data);
  }
}

}  // namespace lethe
