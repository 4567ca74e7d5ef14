#include "kernel/scanner.h"

#include "kernel/check.h"

namespace kernel {

void Scanner::init(Zone* zones, size_t zone_count, const ScannerOptions& options) {
  CHECK(zone_count <= kZonesMax);
  for (size_t z = 0; z < zone_count; ++z) {
    CHECK(options.isolated_max >= block_bytes(zones[z].order_max()));
  }
  *this = Scanner();
  zones_ = zones;
  zone_count_ = zone_count;
  options_ = options;
}

bool Scanner::due() const {
  for (size_t z = 0; z < zone_count_; ++z) {
    for (unsigned order = options_.order_min; order <= zones_[z].order_max(); ++order) {
      if (zones_[z].area(order).came() - seen_[z][order] >= options_.high_water) return true;
    }
  }
  return false;
}

// From the smallest order up: what merges on its way back is met again in its new order.
bool Scanner::next(FreeBlock& block) {
  if (!awake_) return false;
  for (size_t z = 0; z < zone_count_; ++z) {
    for (unsigned order = options_.order_min; order <= zones_[z].order_max(); ++order) {
      if (isolated_ + block_bytes(order) > options_.isolated_max) return false;
      const uint64_t address = zones_[z].isolate(order);
      if (address == kNoMemory) {
        // All that came is reported, or away. Who comes from now on is new.
        seen_[z][order] = zones_[z].area(order).came();
        continue;
      }
      isolated_ += block_bytes(order);
      if (isolated_ > isolated_most_) isolated_most_ = isolated_;
      block = {address, block_bytes(order)};
      return true;
    }
  }
  awake_ = false;
  return false;
}

void Scanner::done(uint64_t address, bool reported) {
  Zone& zone = zone_of(address);
  const unsigned order = zone.put_back(address, reported);
  isolated_ -= block_bytes(order);
  if (reported) {
    reported_ += block_bytes(order);
  } else {
    --seen_[&zone - zones_][order];  // as good as new
  }
}

void Scanner::abandon() {
  const uint64_t step = block_bytes(options_.order_min);
  for (size_t z = 0; z < zone_count_; ++z) {
    for (uint64_t at = (zones_[z].begin() + step - 1) / step * step; at < zones_[z].end();
         at += step) {
      if (zones_[z].record(at).state == BlockState::kIsolated) done(at, false);
    }
  }
}

Zone& Scanner::zone_of(uint64_t address) {
  size_t z = 0;
  while (z < zone_count_ && !zones_[z].contains(address)) ++z;
  CHECK(z < zone_count_);
  return zones_[z];
}

}  // namespace kernel
