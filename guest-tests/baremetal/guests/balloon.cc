// Memory return as a good guest does it: each queue of the balloon, and the whole way from free()
// by the scanner to the host and back. hostile.cc is the other half.
#include "guests/balloon.h"

#include "kernel/boot.h"
#include "kernel/cases.h"
#include "kernel/check.h"
#include "kernel/memory.h"

using namespace kernel;

namespace balloon {
namespace {

// One word in each of a few pages, the first and the last included.
constexpr uint64_t kPlaces[] = {0, 0x1008, 0x23ff8, 0x80010, 0x100000, 0x1a5678, k2MiB - 8};

uint64_t word(uint64_t tag, uint64_t place) { return (tag << 32) ^ (place * 0x9e3779b97f4a7c15); }

uint64_t* at(uint64_t address) { return reinterpret_cast<uint64_t*>(address); }

bool old_is_ok() {
  const char* old = option("old");
  return old != nullptr && strings_equal(old, "ok");
}

}  // namespace

void write_block(uint64_t address, uint64_t tag) {
  for (const uint64_t place : kPlaces) *at(address + place) = word(tag, place);
}

void poison_block(uint64_t address, uint32_t poison) {
  for (const uint64_t place : kPlaces) *at(address + place) = (uint64_t{poison} << 32) | poison;
}

void check_block_part(uint64_t address, uint64_t tag, uint64_t begin, uint64_t end) {
  for (const uint64_t place : kPlaces) {
    if (place >= begin && place < end) CHECK_EQ(*at(address + place), word(tag, place));
  }
}

void check_block(uint64_t address, uint64_t tag) { check_block_part(address, tag, 0, k2MiB); }

void check_returned_part(uint64_t address, uint64_t old_tag, uint32_t poison, uint64_t begin,
                         uint64_t end) {
  const uint64_t expected = (uint64_t{poison} << 32) | poison;
  const bool old_ok = old_is_ok();
  for (const uint64_t place : kPlaces) {
    if (place < begin || place >= end) continue;
    const uint64_t found = *at(address + place);
    if (old_ok && found == word(old_tag, place)) continue;
    CHECK_EQ(found, expected);
  }
}

void check_returned(uint64_t address, uint64_t old_tag, uint32_t poison) {
  check_returned_part(address, old_tag, poison, 0, k2MiB);
}

BalloonDriver& driver() {
  static BalloonDriver balloon;
  static bool opened = false;
  if (!opened) CHECK(balloon.open({}));
  opened = true;
  return balloon;
}

}  // namespace balloon

void guest_main() {
  using namespace balloon;
  static const Case cases[] = {
      {"negotiation", negotiation},
      {"inflate", inflate},
      {"inflate-single-pages", inflate_single_pages},
      {"statistics", statistics},
      {"reporting", reporting},
      {"reporting-parts", reporting_parts},
      {"hinting", hinting},
      {"poison", poison},
      {"reset-with-reports", reset_with_reports},
      {"return-beside-a-busy-cpu", return_beside_a_busy_cpu, true},
      {"isolation-bound", isolation_bound, true},
      {"return", memory_return, true},
      {"host-driven", host_driven, true},
  };
  run_cases("balloon", cases);
}
