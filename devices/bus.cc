#include "devices/bus.h"

#include <algorithm>

namespace lethe {
namespace {

// The last address of a range, which unlike its end always exists.
uint64_t last(const BusRange& range) { return range.start + (range.size - 1); }

}  // namespace

Bus::Bus(const char* name) : x_name(name), x_entries(std::vector<Entry>{}) {}

Result<> Bus::add(BusRange range, BusDevice& device) {
  if (range.size == 0) return host_error("{} range at {:#x} is empty", x_name, range.start);
  if (range.size - 1 > UINT64_MAX - range.start)
    return host_error("{} range at {:#x} of {:#x} bytes wraps", x_name, range.start, range.size);
  Result<> result;
  x_entries.update([&](std::vector<Entry>& entries) {
    const auto after = std::find_if(entries.begin(), entries.end(), [&](const Entry& entry) {
      return last(entry.range) >= range.start;
    });
    if (after != entries.end() && after->range.start <= last(range)) {
      result = host_error("{} range {:#x}-{:#x} overlaps {:#x}-{:#x}", x_name, range.start,
                          last(range), after->range.start, last(after->range));
      return;
    }
    entries.insert(after, {.range = range, .device = &device});
  });
  return result;
}

void Bus::remove(uint64_t start) {
  x_entries.update([&](std::vector<Entry>& entries) {
    std::erase_if(entries, [&](const Entry& entry) { return entry.range.start == start; });
  });
}

Bus::Hit Bus::find(uint64_t address, size_t size) const {
  const auto entries = x_entries.read();
  const auto after = std::upper_bound(
      entries->begin(), entries->end(), address,
      [](uint64_t wanted, const Entry& entry) { return wanted < entry.range.start; });
  if (after == entries->begin()) return {};
  const Entry& entry = *std::prev(after);
  const uint64_t offset = address - entry.range.start;
  if (offset >= entry.range.size || size > entry.range.size - offset) return {};
  return {.device = entry.device, .offset = offset};
}

// The device is called after the guard is gone: it may edit the bus (a BAR that moves), and it may
// take its time.
void Bus::read(uint64_t address, std::span<uint8_t> data) const {
  const Hit hit = find(address, data.size());
  if (hit.device != nullptr) {
    hit.device->bus_read(hit.offset, data);
    return;
  }
  std::fill(data.begin(), data.end(), uint8_t{0xff});
  x_unclaimed.fetch_add(1, std::memory_order_relaxed);
}

void Bus::write(uint64_t address, std::span<const uint8_t> data) const {
  const Hit hit = find(address, data.size());
  if (hit.device != nullptr) {
    hit.device->bus_write(hit.offset, data);
    return;
  }
  x_unclaimed.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace lethe
