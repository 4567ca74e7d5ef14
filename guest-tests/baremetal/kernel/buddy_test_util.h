// Zones and a scanner beside a plain truth: one entry a page. check() compares the two.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "kernel/buddy.h"
#include "kernel/scanner.h"

namespace kernel {

class BuddyWorld {
 public:
  struct Shape {
    std::vector<std::pair<uint64_t, uint64_t>> zones;  // [begin, end) in pages
    unsigned order_max = kOrderMax;
    ScannerOptions scanner = {};
  };

  explicit BuddyWorld(const Shape& shape) : shape_(shape) {
    records_.resize(shape.zones.size());
    zones_.resize(shape.zones.size());
    for (size_t z = 0; z < zones_.size(); ++z) {
      const uint64_t begin = shape.zones[z].first * kBuddyPage;
      const uint64_t end = shape.zones[z].second * kBuddyPage;
      records_[z].resize(Zone::records_for(begin, end));
      zones_[z].init(begin, end, records_[z].data(), shape.order_max, shape.scanner.order_min);
      zones_[z].add(begin, end, false);
      for (uint64_t at = begin; at < end; at += kBuddyPage) pages_[at] = Page();
    }
    scanner_.init(zones_.data(), zones_.size(), shape.scanner);
  }
  BuddyWorld(const BuddyWorld&) = delete;
  BuddyWorld& operator=(const BuddyWorld&) = delete;

  uint64_t allocate(size_t zone, unsigned order) {
    const uint64_t address = zones_[zone].allocate(order);
    if (address == kNoMemory) {
      // Right only if no free aligned block of this size is there.
      EXPECT_FALSE(has_free_block(zone, order));
      return address;
    }
    EXPECT_EQ(address % block_bytes(order), 0);
    EXPECT_TRUE(zones_[zone].contains(address));
    for_block(address, order, [](Page& p) {
      EXPECT_EQ(p.state, Page::kFree);
      p.state = Page::kAllocated;
      p.news = true;
    });
    allocated_[address] = order;
    return address;
  }

  void free(uint64_t address) {
    const unsigned order = allocated_.at(address);
    allocated_.erase(address);
    zone_of(address).free(address);
    for_block(address, order, [](Page& p) { p.state = Page::kFree; });
    spread_news(address);
  }

  // What Scanner::next() gave, or nothing.
  std::optional<FreeBlock> next() {
    FreeBlock block;
    if (!scanner_.next(block)) return std::nullopt;
    const unsigned order = order_of(block.bytes);
    EXPECT_GE(order, shape_.scanner.order_min);
    EXPECT_EQ(block.address % block.bytes, 0);
    bool news = false;
    for_block(block.address, order, [&](Page& p) {
      EXPECT_EQ(p.state, Page::kFree);
      p.state = Page::kIsolated;
      news |= p.news;
    });
    EXPECT_TRUE(news) << "reported again, and nobody had used it";
    isolated_.push_back(block);
    return block;
  }

  void done(size_t index, bool reported) {
    const FreeBlock block = isolated_.at(index);
    isolated_.erase(isolated_.begin() + static_cast<ptrdiff_t>(index));
    scanner_.done(block.address, reported);
    for_block(block.address, order_of(block.bytes), [&](Page& p) {
      p.state = Page::kFree;
      if (reported) p.news = false;
    });
    spread_news(block.address);
  }

  void abandon() {
    scanner_.abandon();
    for (const FreeBlock& block : isolated_) {
      for_block(block.address, order_of(block.bytes), [](Page& p) { p.state = Page::kFree; });
    }
    for (const FreeBlock& block : isolated_) spread_news(block.address);
    isolated_.clear();
  }

  void check() {
    uint64_t isolated = 0;
    for (const FreeBlock& block : isolated_) isolated += block.bytes;
    ASSERT_EQ(scanner_.isolated_bytes(), isolated);
    ASSERT_LE(isolated, shape_.scanner.isolated_max);
    ASSERT_LE(scanner_.isolated_most(), shape_.scanner.isolated_max);
    std::map<uint64_t, unsigned> seen;  // pages that are on a list
    for (size_t z = 0; z < zones_.size(); ++z) {
      for (unsigned order = 0; order <= shape_.order_max; ++order) check_list(z, order, seen);
    }
    for (const auto& [address, page] : pages_) {
      ASSERT_EQ(seen[address], page.state == Page::kFree ? 1U : 0U) << address;
    }
  }

  // No free block that the scanner should report is unreported.
  [[nodiscard]] bool all_reported() const {
    for (const Zone& zone : zones_) {
      for (unsigned o = shape_.scanner.order_min; o <= shape_.order_max; ++o) {
        const uint32_t first = zone.area(o).first;
        if (first != kNoPage && !zone.record(zone.address_of(first)).reported) return false;
      }
    }
    return true;
  }

  Zone& zone(size_t z) { return zones_[z]; }
  size_t zone_count() const { return zones_.size(); }
  Scanner& scanner() { return scanner_; }
  const std::map<uint64_t, unsigned>& allocated() const { return allocated_; }
  const std::vector<FreeBlock>& isolated() const { return isolated_; }

  static unsigned order_of(uint64_t bytes) {
    unsigned order = 0;
    while (block_bytes(order) < bytes) ++order;
    EXPECT_EQ(block_bytes(order), bytes);
    return order;
  }

 private:
  struct Page {
    enum State { kFree, kAllocated, kIsolated } state = kFree;
    bool news = true;  // used since it was last reported, or merged with what was
  };

  template <typename F>
  void for_block(uint64_t address, unsigned order, F f) {
    for (uint64_t at = address; at < address + block_bytes(order); at += kBuddyPage) {
      f(pages_.at(at));
    }
  }

  Zone& zone_of(uint64_t address) {
    for (Zone& zone : zones_) {
      if (zone.contains(address)) return zone;
    }
    throw std::out_of_range("no zone");
  }

  // A mark is one for a whole block: what merges with news is news. Free memory is always merged,
  // so the block is the largest aligned one that is wholly free.
  void spread_news(uint64_t address) {
    const Zone& zone = zone_of(address);
    unsigned order = 0;
    for (unsigned o = 1; o <= shape_.order_max; ++o) {
      const uint64_t begin = address / block_bytes(o) * block_bytes(o);
      bool free = begin >= zone.begin() && begin + block_bytes(o) <= zone.end();
      if (free) for_block(begin, o, [&](Page& p) { free &= p.state == Page::kFree; });
      if (free) order = o;
    }
    const uint64_t begin = address / block_bytes(order) * block_bytes(order);
    bool news = false;
    for_block(begin, order, [&](Page& p) { news |= p.news; });
    for_block(begin, order, [&](Page& p) { p.news = news; });
  }

  bool has_free_block(size_t z, unsigned order) {
    const Zone& zone = zones_[z];
    const uint64_t size = block_bytes(order);
    for (uint64_t at = (zone.begin() + size - 1) / size * size; at + size <= zone.end();
         at += size) {
      bool all = true;
      for_block(at, order, [&](Page& p) { all &= p.state == Page::kFree; });
      if (all) return true;
    }
    return false;
  }

  void check_list(size_t z, unsigned order, std::map<uint64_t, unsigned>& seen) {
    const Zone& zone = zones_[z];
    const FreeArea& area = zone.area(order);
    uint64_t length = 0;
    uint64_t away = 0;
    bool reported_begun = false;
    uint32_t previous = kNoPage;
    for (uint32_t at = area.first; at != kNoPage;) {
      const uint64_t address = zone.address_of(at);
      const PageRecord& r = zone.record(address);
      ASSERT_EQ(r.state, BlockState::kFree);
      ASSERT_EQ(r.order, order);
      ASSERT_EQ(r.previous, previous);
      ASSERT_EQ(address % block_bytes(order), 0);
      ASSERT_LE(++length, pages_.size()) << "the list is a ring";
      if (reported_begun) ASSERT_TRUE(r.reported) << "not reported behind reported";
      reported_begun = r.reported;
      if (r.reported) ASSERT_GE(order, shape_.scanner.order_min);
      for_block(address, order, [&](Page& p) {
        if (r.reported) EXPECT_FALSE(p.news) << "used, but still marked";
      });
      for (uint64_t p = address; p < address + block_bytes(order); p += kBuddyPage) ++seen[p];
      check_not_mergeable(zone, address, order);
      previous = at;
      at = r.next;
    }
    ASSERT_EQ(area.last, previous);
    ASSERT_EQ(area.nr_free(), length);
    for (const FreeBlock& block : isolated_) {
      away += zone.contains(block.address) && block.bytes == block_bytes(order) ? 1 : 0;
    }
    ASSERT_EQ(area.nr_isolated, away);
  }

  void check_not_mergeable(const Zone& zone, uint64_t address, unsigned order) {
    if (order == shape_.order_max) return;
    const uint64_t buddy = address ^ block_bytes(order);
    if (!zone.contains(buddy)) return;
    const PageRecord& r = zone.record(buddy);
    ASSERT_FALSE(r.state == BlockState::kFree && r.order == order) << "buddies, both free";
  }

  Shape shape_;
  std::vector<std::vector<PageRecord>> records_;
  std::vector<Zone> zones_;
  Scanner scanner_;
  std::map<uint64_t, Page> pages_;
  std::map<uint64_t, unsigned> allocated_;  // address -> order
  std::vector<FreeBlock> isolated_;
};

}  // namespace kernel
