// A buddy allocator that a free-page scanner (scanner.h) can work on.
//
// Free memory lies in blocks of 2^order pages, aligned to their size; a zone has one list of them
// for each order. Two free blocks that make up an aligned larger one, buddies, are merged at once.
//
// For the scanner each free block has one more bit, `reported`: the host was told that it is free,
// and nobody has used it since. Three rules keep the scanner's work small:
//
//   1. In every list the blocks that are not reported come first, the reported ones last. To find
//      work is to look at the first block; who allocates gets memory that the host still backs.
//   2. A block is reported only if all of it is: a merged block if both halves were, a remainder of
//      a split block if the whole was (and if it is not smaller than what is reported at all: a
//      page used next to it brings the host's memory back for both).
//   3. What the scanner takes is on no list. Nobody can allocate it, and it can't merge, until it
//   is
//      put back.
//
// Counts, for each order: nr_freed goes up with each block that comes to the list, nr_bound with
// each that leaves it, so that nr_freed - nr_bound are on it. Two numbers instead of one, because
// nr_freed alone tells the scanner how many came since it last looked, however many have left. A
// block that goes through the scanner's hands is neither: nr_freed is taken back by one, and given
// again when it returns.
//
// Source: A. Duyck, "Thoughts on simple scanner approach for free page hinting", linux-mm, April
// 2019. The host side is in docs/memory.md.
//
// No locks: one CPU, no interrupts. Where there are more, a lock around each call here is enough;
// it is not needed while the host works on blocks that were taken.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kernel {

inline constexpr unsigned kOrderMax = 10;  // largest block: 4 MiB
inline constexpr uint64_t kBuddyPage = 4096;
inline constexpr uint64_t kNoMemory = ~uint64_t{0};

constexpr uint64_t block_bytes(unsigned order) { return kBuddyPage << order; }

enum class BlockState : uint8_t {
  kNone,       // not the first page of a block (or no page of this zone)
  kFree,       // on a list
  kAllocated,  // somebody's
  kIsolated,   // the scanner's
};

// One for each page; only that of a block's first page means anything. All zeroes: kNone.
struct PageRecord {
  uint32_t next;  // on the list, by page number in the zone; kNoPage: none
  uint32_t previous;
  BlockState state;
  uint8_t order;
  bool reported;
};
inline constexpr uint32_t kNoPage = ~uint32_t{0};

struct FreeArea {
  uint32_t first = kNoPage;
  uint32_t last = kNoPage;
  uint64_t nr_freed = 0;
  uint64_t nr_bound = 0;
  uint64_t nr_isolated = 0;

  uint64_t nr_free() const { return nr_freed - nr_bound; }
  // Goes up by one with each block that comes to be free, be it on its way to a larger one, or a
  // remainder that is still reported: more than zero new ones may mean no work, never the reverse.
  uint64_t came() const { return nr_freed + nr_isolated; }
};

class Zone {
 public:
  // How many records a zone of [begin, end) needs. Addresses in bytes, multiples of kBuddyPage.
  static size_t records_for(uint64_t begin, uint64_t end);

  // `records`: that many, all zeroes, not within the zone. At first nothing is free. No block gets
  // larger than `order_max`; remainders below `report_order` lose their reported bit (rule 2).
  void init(uint64_t begin, uint64_t end, PageRecord* records, unsigned order_max = kOrderMax,
            unsigned report_order = 9);
  // Makes [begin, end) of the zone free. `reported`: the host is known to back none of it.
  void add(uint64_t begin, uint64_t end, bool reported);

  // The address of a block of 2^order pages, or kNoMemory.
  uint64_t allocate(unsigned order);
  // What allocate() returned. A double free fails a CHECK.
  void free(uint64_t address);

  // For the scanner. Takes the order's first block if it is not reported, as a whole; its address,
  // or kNoMemory. Nothing is split or merged for it.
  uint64_t isolate(unsigned order);
  // Returns such a block; it may merge. Its order.
  unsigned put_back(uint64_t address, bool reported);

  bool contains(uint64_t address) const { return address >= begin_ && address < end_; }
  const FreeArea& area(unsigned order) const { return areas_[order]; }
  const PageRecord& record(uint64_t address) const { return records_[page_of(address)]; }
  uint64_t address_of(uint32_t page) const { return base_ + page * kBuddyPage; }
  unsigned order_max() const { return order_max_; }
  uint64_t begin() const { return begin_; }
  uint64_t end() const { return end_; }
  uint64_t free_bytes() const;

 private:
  uint32_t page_of(uint64_t address) const {
    return static_cast<uint32_t>((address - base_) / kBuddyPage);
  }
  // Records of pages beyond end_ exist up to the next largest block, and are kNone for ever: so a
  // buddy always has a record.
  uint32_t buddy_of(uint32_t page, unsigned order) const { return page ^ (uint32_t{1} << order); }
  void link(uint32_t page, unsigned order, bool reported);
  void unlink(uint32_t page);
  void insert(uint32_t page, unsigned order, bool reported);

  uint64_t begin_ = 0;
  uint64_t end_ = 0;
  uint64_t base_ = 0;  // begin_, rounded down to the largest block: page 0
  PageRecord* records_ = nullptr;
  unsigned order_max_ = 0;
  unsigned report_order_ = 0;
  FreeArea areas_[kOrderMax + 1];
};

}  // namespace kernel
