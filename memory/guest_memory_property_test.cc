// Guest memory against a model of bytes: random layouts, device memory that comes and goes, and
// ranges at, around and far beyond every border.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "memory/guest_memory.h"

namespace lethe {
namespace {

constexpr uint64_t kWindowPages = 16;  // all regions lie in so many pages
constexpr uint64_t kCopyMax = 4 * kPageBytes;

using Bytes = std::vector<uint8_t>;

// Of the whole range from the first case on, not of what rapidcheck thinks small.
uint64_t number(uint64_t end) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<uint64_t>(0, end));
}

struct ModelRegion {
  uint64_t start;
  Bytes bytes;
  std::shared_ptr<Bytes> device;  // its own memory; null: RAM

  // In 128 bits nothing wraps.
  [[nodiscard]] bool holds(uint64_t address, uint64_t length) const {
    using Wide = unsigned __int128;
    return address >= start && Wide{address} + length <= Wide{start} + bytes.size();
  }
};

class Both {
 public:
  Both() : x_window(*rc::gen::element<uint64_t>(0, 4 * kGiB, -(kWindowPages + 1) * kPageBytes)) {
    std::vector<GuestMemory::Range> ranges;
    for (uint64_t page = number(3); page < kWindowPages / 2 || ranges.empty();) {
      const uint64_t pages = 1 + number(3);
      ranges.push_back({GuestAddr{x_window + page * kPageBytes}, pages * kPageBytes});
      x_regions.push_back({ranges.back().start.value, Bytes(ranges.back().size), nullptr});
      page += pages + number(3);
    }
    x_memory = GuestMemory::create(ranges, {.thp = false}).value();
  }

  void step() {
    const uint64_t what = number(10);
    if (what < 1) return add();
    if (what < 2) return remove();
    const uint64_t address = some_address();
    const uint64_t length = some_length(address);
    if (what < 5) return slice(address, length);
    if (what < 8) return write(address, std::min(length, kCopyMax));
    read(address, std::min(length, kCopyMax));
  }

  void check_all() {
    std::ranges::sort(x_regions, {}, &ModelRegion::start);
    const auto regions = x_memory->regions();
    RC_ASSERT(regions.size() == x_regions.size());
    uint64_t ram = 0;
    for (size_t i = 0; i < regions.size(); ++i) {
      const ModelRegion& model = x_regions[i];
      RC_ASSERT(regions[i].start.value == model.start);
      RC_ASSERT(regions[i].size == model.bytes.size());
      RC_ASSERT(regions[i].removable == (model.device != nullptr));
      if (model.device != nullptr) RC_ASSERT(*model.device == model.bytes);
      if (model.device == nullptr) ram += model.bytes.size();
      Bytes now(model.bytes.size());
      RC_ASSERT(x_memory->read(regions[i].start, now));
      RC_ASSERT(now == model.bytes);
    }
    RC_ASSERT(x_memory->total_bytes() == ram);
    for (const auto& [host, bytes] : x_removed) RC_ASSERT(*host == bytes);
  }

 private:
  ModelRegion* find(uint64_t address, uint64_t length, bool ram_only = false) {
    const auto found = std::ranges::find_if(x_regions, [&](const ModelRegion& region) {
      return region.holds(address, length) && !(ram_only && region.device != nullptr);
    });
    return found == x_regions.end() ? nullptr : &*found;
  }

  // Borders and what is beside them, anything in the window, the ends of all addresses.
  uint64_t some_address() {
    const ModelRegion& region = x_regions[number(x_regions.size())];
    const uint64_t near = number(5) - 2;
    switch (number(5)) {
      case 0:
        return region.start + near;
      case 1:
        return region.start + region.bytes.size() + near;
      case 2:
        return region.start + number(region.bytes.size());
      case 3:
        return x_window + number(kWindowPages * kPageBytes);
      default:
        return near;  // 0, UINT64_MAX
    }
  }
  uint64_t some_length(uint64_t address) {
    const ModelRegion& region = x_regions[number(x_regions.size())];
    switch (number(6)) {
      case 0:
        return number(3);
      case 1:
        return number(kCopyMax);
      case 2:  // to an end, or one byte on either side of it
        return region.start + region.bytes.size() - address + number(3) - 1;
      case 3:  // to 2^64, or round it and back into memory
        return number(3) - address;
      case 4:
        return region.start - address + number(3);
      default:
        return UINT64_MAX - number(2);
    }
  }

  void write(uint64_t address, uint64_t length) {
    const Bytes bytes = some_bytes(length);
    ModelRegion* const region = find(address, length);
    RC_ASSERT(x_memory->write(GuestAddr{address}, bytes) == (region != nullptr));
    if (region != nullptr) std::ranges::copy(bytes, at(*region, address));
  }
  void read(uint64_t address, uint64_t length) {
    const Bytes before = some_bytes(length);
    Bytes got = before;
    ModelRegion* const region = find(address, length);
    RC_ASSERT(x_memory->read(GuestAddr{address}, got) == (region != nullptr));
    if (region == nullptr) RC_ASSERT(got == before);
    if (region != nullptr) RC_ASSERT(std::equal(got.begin(), got.end(), at(*region, address)));
  }
  void slice(uint64_t address, uint64_t length) {
    ModelRegion* const region = find(address, length, true);
    const auto slice = x_memory->slice(GuestAddr{address}, length);
    RC_ASSERT(slice.has_value() == (region != nullptr));
    if (region == nullptr) return;
    RC_ASSERT(slice->size == length);
    RC_ASSERT(std::equal(slice->data, slice->data + length, at(*region, address)));
    const Bytes bytes = some_bytes(length);
    std::ranges::copy(bytes, slice->data);
    std::ranges::copy(bytes, at(*region, address));
  }

  void add() {
    const uint64_t start = x_window + number(kWindowPages - 2) * kPageBytes;
    const uint64_t size = (1 + number(2)) * kPageBytes;
    const bool free = std::ranges::none_of(x_regions, [&](const ModelRegion& region) {
      return start < region.start + region.bytes.size() && region.start < start + size;
    });
    auto device = std::make_shared<Bytes>(some_bytes(size));
    RC_ASSERT(x_memory->add_region(GuestAddr{start}, size, device->data()).has_value() == free);
    if (free) x_regions.push_back({start, *device, device});
  }
  void remove() {
    const ModelRegion& some = x_regions[number(x_regions.size())];
    const uint64_t start = some.start + number(2) * kPageBytes;
    const auto found = std::ranges::find_if(x_regions, [&](const ModelRegion& region) {
      return region.start == start && region.device != nullptr;
    });
    RC_ASSERT(x_memory->remove_region(GuestAddr{start}) == (found != x_regions.end()));
    if (found == x_regions.end()) return;
    x_removed.emplace_back(found->device, found->bytes);
    x_regions.erase(found);
  }

  static Bytes::iterator at(ModelRegion& region, uint64_t address) {
    return region.bytes.begin() + static_cast<ptrdiff_t>(address - region.start);
  }
  // Different each time: 251 is no divisor of a page.
  Bytes some_bytes(uint64_t length) {
    Bytes bytes(length);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(x_next++ % 251);
    return bytes;
  }

  const uint64_t x_window;  // where all regions are
  std::vector<ModelRegion> x_regions;
  std::vector<std::pair<std::shared_ptr<Bytes>, Bytes>> x_removed;  // untouched from then on
  std::unique_ptr<GuestMemory> x_memory;
  uint64_t x_next = 1;
};

RC_GTEST_PROP(GuestMemoryProperty, is_the_model_after_every_step, ()) {
  Both both;
  const uint64_t steps = 1 + number(200);
  for (uint64_t i = 0; i < steps; ++i) both.step();
  both.check_all();
}

}  // namespace
}  // namespace lethe
