#include "devices/pci/msix.h"

#include <cstring>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr size_t kAddressLow = PCI_MSIX_ENTRY_LOWER_ADDR / 4;
constexpr size_t kAddressHigh = PCI_MSIX_ENTRY_UPPER_ADDR / 4;
constexpr size_t kData = PCI_MSIX_ENTRY_DATA / 4;
constexpr size_t kControl = PCI_MSIX_ENTRY_VECTOR_CTRL / 4;

}  // namespace

Result<std::unique_ptr<Msix>> Msix::create(MsiController& controller, uint16_t vectors) {
  LETHE_ASSERT(vectors >= 1 && vectors <= kVectorsMax);
  std::unique_ptr<Msix> msix(new Msix(vectors));
  for (Vector& vector : msix->x_vectors) {
    LETHE_TRY_ASSIGN(vector.route, controller.make_route());
    vector.entry[kControl] = PCI_MSIX_ENTRY_CTRL_MASKBIT;  // the state after reset (6.8.2.9)
  }
  return msix;
}

void Msix::set_control(uint16_t control) {
  x_mask_all = (control & PCI_MSIX_FLAGS_MASKALL) != 0;
  x_enabled.store((control & PCI_MSIX_FLAGS_ENABLE) != 0, std::memory_order_release);
  for (Vector& vector : x_vectors) update(vector);
}

void Msix::update(Vector& vector) {
  if (!enabled()) return vector.state.disable();
  if (x_mask_all || (vector.entry[kControl] & PCI_MSIX_ENTRY_CTRL_MASKBIT) != 0)
    return vector.state.mask();
  const MsiMessage message{
      static_cast<uint64_t>(vector.entry[kAddressHigh]) << 32 | vector.entry[kAddressLow],
      vector.entry[kData]};
  // The route learns its message before the first signal may go there. Telling it is a system call,
  // so only when something is new: drivers mask and unmask without changing the message.
  if (!(message == vector.sent_to)) {
    vector.route->set_message(message);
    vector.sent_to = message;
  }
  if (vector.state.open()) vector.route->signal();
}

void Msix::signal(uint16_t index) {
  if (index >= vectors()) return;
  Vector& vector = x_vectors[index];
  if (vector.state.signal()) vector.route->signal();
}

void Msix::read_table(uint64_t offset, std::span<uint8_t> data) const {
  for (size_t i = 0; i < data.size(); ++i) {
    const uint64_t at = offset + i;
    if (at >= table_bytes()) {
      data[i] = 0;
      continue;
    }
    const uint32_t dword = x_vectors[at / PCI_MSIX_ENTRY_SIZE].entry[at % PCI_MSIX_ENTRY_SIZE / 4];
    data[i] = static_cast<uint8_t>(dword >> (at % 4 * 8));
  }
}

bool Msix::write_table(uint64_t offset, std::span<const uint8_t> data) {
  if ((data.size() != 4 && data.size() != 8) || offset % data.size() != 0 ||
      offset + data.size() > table_bytes())
    return false;
  Vector& vector = x_vectors[offset / PCI_MSIX_ENTRY_SIZE];
  for (size_t i = 0; i < data.size(); i += 4) {
    const size_t field = (offset + i) % PCI_MSIX_ENTRY_SIZE / 4;
    uint32_t value = 0;
    std::memcpy(&value, &data[i], sizeof value);
    if (field == kAddressLow) value &= ~uint32_t{3};  // messages are dwords (6.8.2.6)
    if (field == kControl) value &= PCI_MSIX_ENTRY_CTRL_MASKBIT;
    vector.entry[field] = value;
  }
  update(vector);
  return true;
}

void Msix::read_pba(uint64_t offset, std::span<uint8_t> data) const {
  for (size_t i = 0; i < data.size(); ++i) {
    uint8_t bits = 0;
    for (uint64_t bit = 0; bit < 8; ++bit) {
      const uint64_t index = (offset + i) * 8 + bit;
      if (index >= x_vectors.size()) break;
      if (x_vectors[index].state.pending()) bits |= static_cast<uint8_t>(1U << bit);
    }
    data[i] = bits;
  }
}

void Msix::save(StateWriter& to) const {
  to.number(vectors());
  for (const Vector& vector : x_vectors) {
    for (const uint32_t field : vector.entry) to.number(field);
    to.boolean(vector.state.pending());
  }
}

void Msix::restore(StateReader& from, uint16_t control) {
  if (from.number<uint16_t>() != vectors()) from.fail("another number of interrupt vectors");
  std::vector<bool> send(vectors());
  for (size_t i = 0; i < vectors(); ++i) {
    auto& entry = x_vectors[i].entry;
    for (uint32_t& field : entry) field = from.number<uint32_t>();
    // As write_table() takes them.
    entry[kAddressLow] &= ~uint32_t{3};
    entry[kControl] &= PCI_MSIX_ENTRY_CTRL_MASKBIT;
    send[i] = from.boolean();
  }
  if (!from.ok()) return;
  set_control(control);
  for (size_t i = 0; i < vectors(); ++i) {
    const bool open =
        !x_mask_all && (x_vectors[i].entry[kControl] & PCI_MSIX_ENTRY_CTRL_MASKBIT) == 0;
    if (send[i] || open) signal(static_cast<uint16_t>(i));
  }
}

}  // namespace lethe
