#include "devices/legacy/ioapic/ioapic.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace lethe {
namespace {

// Offsets of the two registers, and what the index selects (3.1, 3.2).
constexpr uint64_t kIndexOffset = 0x00;
constexpr uint64_t kDataOffset = 0x10;
constexpr uint8_t kIdRegister = 0;
constexpr uint8_t kVersionRegister = 1;
constexpr uint8_t kArbitrationRegister = 2;
constexpr uint8_t kRedirectionTable = 0x10;  // two registers a pin
constexpr uint32_t kVersion = 0x11;

// The redirection entry (3.2.4).
constexpr uint64_t kVector = 0xFF;
constexpr uint64_t kDeliveryMode = 0x700;
constexpr uint64_t kLogical = 1 << 11;
constexpr uint64_t kReadOnly = (1 << 12) | (1 << 14);  // delivery status, remote IRR
constexpr uint64_t kMasked = 1 << 16;
constexpr unsigned kDestinationShift = 56;
constexpr uint64_t kWritable = (uint64_t{0xFF} << kDestinationShift) | (0x1'FFFF & ~kReadOnly);

// The same as an MSI message (Intel SDM volume 3, 11.11).
MsiMessage message_of(uint64_t entry) {
  constexpr uint64_t kMsiAddress = 0xFEE0'0000;
  MsiMessage message;
  message.address = kMsiAddress | (entry >> kDestinationShift) << 12 |
                    ((entry & kLogical) != 0 ? uint64_t{1} << 2 : 0);
  message.data = static_cast<uint32_t>(entry & (kVector | kDeliveryMode));
  return message;
}

}  // namespace

class Ioapic::Line final : public Interrupt {
 public:
  explicit Line(Pin& pin) : x_pin(pin) {}
  void signal() override {
    if (x_pin.state.signal()) x_pin.route->signal();
  }

 private:
  Pin& x_pin;
};

Result<std::unique_ptr<Interrupt>> Ioapic::make_line(unsigned gsi) {
  LETHE_ASSERT(gsi < kIoapicPins && x_pins[gsi].route == nullptr);
  Pin& pin = x_pins[gsi];
  LETHE_TRY_ASSIGN(pin.route, x_msi.make_route());
  pin.state.mask();
  return Result<std::unique_ptr<Interrupt>>(std::make_unique<Line>(pin));
}

void Ioapic::bus_read(uint64_t offset, std::span<uint8_t> data) {
  MutexLock lock(x_mutex);
  uint32_t value = 0;
  if (offset == kIndexOffset) value = x_index;
  if (offset == kDataOffset) value = read_register();
  std::memset(data.data(), 0, data.size());
  std::memcpy(data.data(), &value, std::min(data.size(), sizeof value));
}

void Ioapic::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  MutexLock lock(x_mutex);
  // The registers are 32 bits wide and to be accessed so; the index is the low 8 bits.
  if (offset == kIndexOffset) x_index = data[0];
  if (offset != kDataOffset || data.size() != sizeof(uint32_t)) return;
  uint32_t value = 0;
  std::memcpy(&value, data.data(), sizeof value);
  write_register(value);
}

uint32_t Ioapic::read_register() const {
  if (x_index == kIdRegister || x_index == kArbitrationRegister) return uint32_t{x_id} << 24;
  if (x_index == kVersionRegister) return kVersion | (kIoapicPins - 1) << 16;
  const unsigned pin = (x_index - kRedirectionTable) / 2U;
  if (x_index < kRedirectionTable || pin >= kIoapicPins) return UINT32_MAX;
  const uint64_t entry = x_pins[pin].entry;
  return static_cast<uint32_t>(x_index % 2 == 0 ? entry : entry >> 32);
}

void Ioapic::write_register(uint32_t value) {
  if (x_index == kIdRegister) x_id = value >> 24 & 0xF;
  const unsigned index = (x_index - kRedirectionTable) / 2U;
  if (x_index < kRedirectionTable || index >= kIoapicPins) return;
  Pin& pin = x_pins[index];
  if (x_index % 2 == 0)
    pin.entry = (pin.entry & ~uint64_t{UINT32_MAX}) | (value & ~kReadOnly & 0x1'FFFF);
  else
    pin.entry = (pin.entry & UINT32_MAX) | uint64_t{value & 0xFF00'0000} << 32;
  update(pin);
}

void Ioapic::update(Pin& pin) {
  if (pin.route == nullptr) return;
  if ((pin.entry & kMasked) != 0) return pin.state.mask();
  pin.route->set_message(message_of(pin.entry));
  if (pin.state.open()) pin.route->signal();
}

void Ioapic::save(StateWriter& to) {
  MutexLock lock(x_mutex);
  to.begin_section("ioapic", 1);
  to.number(x_index);
  to.number(x_id);
  for (const Pin& pin : x_pins) {
    to.number(pin.entry);
    to.boolean(pin.state.pending());
  }
  to.end_section();
}

void Ioapic::restore(StateReader& from) {
  MutexLock lock(x_mutex);
  from.begin_section("ioapic", 1);
  x_index = from.number<uint8_t>();
  x_id = from.number<uint8_t>() & 0xF;
  for (Pin& pin : x_pins) {
    const uint64_t entry = from.number<uint64_t>() & kWritable;
    const bool pending = from.boolean();
    if (!from.ok()) return;
    pin.entry = entry;
    update(pin);
    if (pending && pin.route != nullptr && pin.state.signal()) pin.route->signal();
  }
  from.end_section();
}

}  // namespace lethe
