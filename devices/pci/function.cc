#include "devices/pci/function.h"

#include <algorithm>

#include "base/assert.h"
#include "base/log.h"

namespace lethe {
namespace {

// Whether [offset, offset + size) meets [at, at + length): a few hundred at most, so no overflow.
constexpr bool touches(uint16_t offset, size_t size, size_t at, size_t length) {
  return offset < at + length && at < offset + size;
}

bool within(const BusRange& window, uint64_t address, uint64_t size) {
  return address >= window.start && size <= window.size &&
         address - window.start <= window.size - size;
}

}  // namespace

PciFunction::PciFunction(const PciEnvironment& environment, const PciIdentity& identity,
                         std::string name)
    : x_environment(environment), x_config(identity), x_name(std::move(name)) {
  for (unsigned i = 0; i < x_bars.size(); ++i) {
    x_bars[i].function = this;
    x_bars[i].index = i;
  }
}

PciFunction::~PciFunction() {
  for (const Bar& bar : x_bars) LETHE_ASSERT(!bar.mapped_at);  // unmap_bars() was not called
}

void PciFunction::Bar::bus_read(uint64_t offset, std::span<uint8_t> data) {
  MutexLock lock(function->x_mutex);
  function->access_read(index, offset, data);
}

void PciFunction::Bar::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  MutexLock lock(function->x_mutex);
  function->access_write(index, offset, data);
}

void PciFunction::config_read(uint16_t offset, std::span<uint8_t> data) {
  MutexLock lock(x_mutex);
  config_reading(offset, data.size());
  x_config.read(offset, data);
}

bool PciFunction::config_write(uint16_t offset, std::span<const uint8_t> data) {
  MutexLock lock(x_mutex);
  x_config.write(offset, data);
  bool released = false;
  if (touches(offset, data.size(), PCI_COMMAND, 2) ||
      touches(offset, data.size(), PCI_BASE_ADDRESS_0, 4 * PciConfigSpace::kBars))
    released = update_bars();
  if (x_msix && touches(offset, data.size(), x_msix_control, 2))
    x_msix->set_control(x_config.load<uint16_t>(x_msix_control));
  config_written(offset, data.size());
  return released;
}

void PciFunction::retry_bars() {
  MutexLock lock(x_mutex);
  if (!x_config.memory_decode()) return;
  for (Bar& bar : x_bars) map_bar(bar);
}

uint64_t PciFunction::bar_size(unsigned bar) const {
  MutexLock lock(x_mutex);
  return x_config.bar_size(bar);
}

PciBarKind PciFunction::bar_kind(unsigned bar) const {
  MutexLock lock(x_mutex);
  return x_config.bar_kind(bar);
}

bool PciFunction::bar_prefetchable(unsigned bar) const {
  MutexLock lock(x_mutex);
  return x_config.bar_prefetchable(bar);
}

void PciFunction::set_bar_address(unsigned bar, uint64_t address) {
  MutexLock lock(x_mutex);
  x_config.set_bar_address(bar, address);
  update_bars();
}

void PciFunction::enable() {
  MutexLock lock(x_mutex);
  const auto command = x_config.load<uint16_t>(PCI_COMMAND);
  x_config.store<uint16_t>(PCI_COMMAND, command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  update_bars();
}

std::optional<uint64_t> PciFunction::bar_mapped_at(unsigned bar) const {
  MutexLock lock(x_mutex);
  return x_bars[bar].mapped_at;
}

void PciFunction::unmap_bars() {
  MutexLock lock(x_mutex);
  for (Bar& bar : x_bars) unmap_bar(bar);
}

void PciFunction::save(StateWriter& to) {
  MutexLock lock(x_mutex);
  to.begin_section(x_name, 1);
  to.bytes(x_config.bytes());
  to.boolean(x_msix != nullptr);
  if (x_msix) x_msix->save(to);
  save_device(to);
  to.end_section();
}

// The bytes go the way of the guest's own writes: only bits that it may write count, and BARs that
// can't be mapped where they say are refused and counted.
Result<> PciFunction::restore(StateReader& from) {
  MutexLock lock(x_mutex);
  from.begin_section(x_name, 1);
  std::array<uint8_t, PciConfigSpace::kSize> bytes{};
  from.bytes_into(bytes);
  if (from.boolean() != (x_msix != nullptr)) from.fail("another set of interrupt vectors");
  LETHE_TRY(from.check());
  x_config.write(0, bytes);
  update_bars();
  if (x_msix) x_msix->restore(from, x_config.load<uint16_t>(x_msix_control));
  LETHE_TRY(from.check());
  restore_device(from);
  from.end_section();
  return from.check();
}

bool PciFunction::update_bars() {
  const bool decode = x_config.memory_decode();
  bool released = false;
  // All leave before any comes: two BARs of the function may have changed places.
  for (Bar& bar : x_bars) {
    if (!bar.mapped_at) continue;
    if (decode && *bar.mapped_at == x_config.bar_address(bar.index)) continue;
    unmap_bar(bar);
    released = true;
  }
  if (!decode) return released;
  for (Bar& bar : x_bars) {
    if (map_bar(bar)) continue;
    x_counters.bars_refused.fetch_add(1, std::memory_order_relaxed);
    LETHE_LOG_LIMITED(LogModule::kPci, "{}: BAR {} at {:#x} is outside the windows or taken",
                      x_name, bar.index, x_config.bar_address(bar.index));
  }
  return released;
}

void PciFunction::unmap_bar(Bar& bar) {
  if (!bar.mapped_at) return;
  bar_unmapping(bar.index);
  x_environment.mmio.remove(*bar.mapped_at);
  bar.mapped_at.reset();
}

bool PciFunction::map_bar(Bar& bar) {
  const uint64_t size = x_config.bar_size(bar.index);
  if (size == 0 || bar.mapped_at) return true;
  const uint64_t address = x_config.bar_address(bar.index);
  if (!placeable(address, size) || !x_environment.mmio.add({address, size}, bar)) return false;
  bar.mapped_at = address;
  bar_mapped(bar.index, address);
  return true;
}

bool PciFunction::placeable(uint64_t address, uint64_t size) const {
  if (!within(x_environment.windows.low, address, size) &&
      !within(x_environment.windows.high, address, size))
    return false;
  // The windows lie outside RAM, if the machine was built well; RAM must win even if it was not.
  const auto regions = x_environment.memory.regions();
  return std::ranges::none_of(regions, [&](const MemoryRegion& region) {
    return address < region.start.value + region.size && region.start.value < address + size;
  });
}

Result<> PciFunction::add_msix(uint16_t vectors, unsigned bar, uint32_t table_offset,
                               uint32_t pba_offset) {
  LETHE_ASSERT(!x_msix && table_offset % 4096 == 0 && pba_offset % 4096 == 0);
  LETHE_TRY_ASSIGN(x_msix, Msix::create(x_environment.msi, vectors));
  LETHE_ASSERT(table_offset + x_msix->table_bytes() <= x_config.bar_size(bar));
  LETHE_ASSERT(pba_offset + x_msix->pba_bytes() <= x_config.bar_size(bar));
  x_msix_bar = bar;
  x_msix_table = table_offset;
  x_msix_pba = pba_offset;
  // Message control, table offset, pending bits offset, behind id and next (6.8.2.3 to 6.8.2.5).
  std::array<uint8_t, PCI_CAP_MSIX_SIZEOF - 2> body{};
  std::array<uint8_t, PCI_CAP_MSIX_SIZEOF - 2> writable{};
  const auto control = static_cast<uint16_t>(vectors - 1);
  const uint32_t table = table_offset | bar;
  const uint32_t pba = pba_offset | bar;
  std::memcpy(&body[PCI_MSIX_FLAGS - 2], &control, sizeof control);
  std::memcpy(&body[PCI_MSIX_TABLE - 2], &table, sizeof table);
  std::memcpy(&body[PCI_MSIX_PBA - 2], &pba, sizeof pba);
  const uint16_t control_writable = PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL;
  std::memcpy(&writable[PCI_MSIX_FLAGS - 2], &control_writable, sizeof control_writable);
  const uint8_t offset = x_config.add_capability(PCI_CAP_ID_MSIX, body, writable);
  x_msix_control = static_cast<uint16_t>(offset + PCI_MSIX_FLAGS);
  return {};
}

bool PciFunction::in_msix_table(unsigned bar, uint64_t offset) const {
  return x_msix && bar == x_msix_bar && offset >= x_msix_table &&
         offset - x_msix_table < x_msix->table_bytes();
}

bool PciFunction::in_msix_pba(unsigned bar, uint64_t offset) const {
  return x_msix && bar == x_msix_bar && offset >= x_msix_pba &&
         offset - x_msix_pba < x_msix->pba_bytes();
}

void PciFunction::access_read(unsigned bar, uint64_t offset, std::span<uint8_t> data) {
  if (in_msix_table(bar, offset)) return x_msix->read_table(offset - x_msix_table, data);
  if (in_msix_pba(bar, offset)) return x_msix->read_pba(offset - x_msix_pba, data);
  bar_read(bar, offset, data);
}

void PciFunction::access_write(unsigned bar, uint64_t offset, std::span<const uint8_t> data) {
  if (in_msix_table(bar, offset)) {
    if (!x_msix->write_table(offset - x_msix_table, data)) refuse_access();
  } else if (in_msix_pba(bar, offset)) {
    refuse_access();
  } else {
    bar_write(bar, offset, data);
  }
}

void PciFunction::bar_read(unsigned /*bar*/, uint64_t /*offset*/, std::span<uint8_t> data) {
  std::ranges::fill(data, uint8_t{0});
}

void PciFunction::bar_write(unsigned /*bar*/, uint64_t /*offset*/,
                            std::span<const uint8_t> /*data*/) {
  refuse_access();
}

}  // namespace lethe
