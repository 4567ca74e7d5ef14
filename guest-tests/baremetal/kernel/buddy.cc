#include "kernel/buddy.h"

#include "kernel/check.h"

namespace kernel {
namespace {

constexpr uint64_t round_down(uint64_t value, uint64_t to) { return value & ~(to - 1); }
constexpr uint64_t round_up(uint64_t value, uint64_t to) { return round_down(value + to - 1, to); }

}  // namespace

size_t Zone::records_for(uint64_t begin, uint64_t end) {
  const uint64_t largest = block_bytes(kOrderMax);
  return (round_up(end, largest) - round_down(begin, largest)) / kBuddyPage;
}

void Zone::init(uint64_t begin, uint64_t end, PageRecord* records, unsigned order_max,
                unsigned report_order) {
  CHECK(begin < end && begin % kBuddyPage == 0 && end % kBuddyPage == 0);
  CHECK(order_max <= kOrderMax && report_order <= order_max);
  begin_ = begin;
  end_ = end;
  base_ = round_down(begin, block_bytes(kOrderMax));
  records_ = records;
  order_max_ = order_max;
  report_order_ = report_order;
  for (FreeArea& area : areas_) area = FreeArea();
}

void Zone::add(uint64_t begin, uint64_t end, bool reported) {
  CHECK(begin >= begin_ && end <= end_);
  for (uint64_t at = begin; at < end;) {
    unsigned order = order_max_;
    while (at % block_bytes(order) != 0 || at + block_bytes(order) > end) --order;
    CHECK(record(at).state == BlockState::kNone);
    insert(page_of(at), order, reported && order >= report_order_);
    at += block_bytes(order);
  }
}

// Not reported: first. Reported: last (rule 1).
void Zone::link(uint32_t page, unsigned order, bool reported) {
  FreeArea& area = areas_[order];
  PageRecord& r = records_[page];
  r = {kNoPage, kNoPage, BlockState::kFree, static_cast<uint8_t>(order), reported};
  if (reported) {
    r.previous = area.last;
    (area.last == kNoPage ? area.first : records_[area.last].next) = page;
    area.last = page;
  } else {
    r.next = area.first;
    (area.first == kNoPage ? area.last : records_[area.first].previous) = page;
    area.first = page;
  }
}

void Zone::unlink(uint32_t page) {
  PageRecord& r = records_[page];
  FreeArea& area = areas_[r.order];
  (r.previous == kNoPage ? area.first : records_[r.previous].next) = r.next;
  (r.next == kNoPage ? area.last : records_[r.next].previous) = r.previous;
  r.state = BlockState::kNone;
}

// A block becomes free and grows as far as its buddies are free too. On its way up it counts as
// freed in each order, and as bound in each that it leaves.
void Zone::insert(uint32_t page, unsigned order, bool reported) {
  for (;; ++order) {
    FreeArea& area = areas_[order];
    ++area.nr_freed;
    if (order == order_max_) break;
    const uint32_t buddy = buddy_of(page, order);
    const PageRecord& other = records_[buddy];
    if (other.state != BlockState::kFree || other.order != order) break;
    reported = reported && other.reported;
    unlink(buddy);
    area.nr_bound += 2;
    records_[page].state = BlockState::kNone;
    if (buddy < page) page = buddy;
  }
  link(page, order, reported);
}

uint64_t Zone::allocate(unsigned order) {
  CHECK(order <= order_max_);
  unsigned from = order;
  while (areas_[from].first == kNoPage) {
    if (from++ == order_max_) return kNoMemory;
  }
  const uint32_t page = areas_[from].first;
  const bool reported = records_[page].reported;
  unlink(page);
  ++areas_[from].nr_bound;
  // Halve it until it fits; the upper halves are free, and their lower buddies are not.
  while (from > order) {
    --from;
    ++areas_[from].nr_freed;
    link(buddy_of(page, from), from, reported && from >= report_order_);
  }
  records_[page].state = BlockState::kAllocated;
  records_[page].order = static_cast<uint8_t>(order);
  return address_of(page);
}

void Zone::free(uint64_t address) {
  CHECK(contains(address));
  const uint32_t page = page_of(address);
  CHECK(records_[page].state == BlockState::kAllocated);
  insert(page, records_[page].order, false);
}

uint64_t Zone::isolate(unsigned order) {
  FreeArea& area = areas_[order];
  const uint32_t page = area.first;
  if (page == kNoPage || records_[page].reported) return kNoMemory;
  unlink(page);
  records_[page].state = BlockState::kIsolated;
  --area.nr_freed;
  ++area.nr_isolated;
  return address_of(page);
}

unsigned Zone::put_back(uint64_t address, bool reported) {
  CHECK(contains(address));
  const uint32_t page = page_of(address);
  const PageRecord& r = records_[page];
  CHECK(r.state == BlockState::kIsolated);
  const unsigned order = r.order;
  --areas_[order].nr_isolated;
  insert(page, order, reported);
  return order;
}

uint64_t Zone::free_bytes() const {
  uint64_t bytes = 0;
  for (unsigned order = 0; order <= order_max_; ++order) {
    bytes += areas_[order].nr_free() * block_bytes(order);
  }
  return bytes;
}

}  // namespace kernel
