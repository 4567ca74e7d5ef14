// The guest's end of memory return, on the host: rules one by one, at random, and every state of a
// small zone.
#include "kernel/scanner.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <string>

#include "kernel/buddy.h"
#include "kernel/buddy_test_util.h"
#include "kernel/check.h"

namespace kernel {

// What a failed CHECK of the guest's code does here.
void check_failed(const char* file, int line, const char* what) {
  std::fprintf(stderr, "CHECK %s:%d: %s\n", file, line, what);
  std::abort();
}

namespace {

constexpr uint64_t kMiBPages = 256;

// Two zones, neither aligned, 16 MiB and 200 MiB; the second is larger than what may be away.
BuddyWorld::Shape two_zones() {
  BuddyWorld::Shape shape;
  shape.zones = {{3 * kMiBPages + 5, 19 * kMiBPages}, {19 * kMiBPages, 219 * kMiBPages - 3}};
  return shape;
}

// Reports until the scanner sleeps; the number of blocks.
size_t report_all(BuddyWorld& world) {
  size_t count = 0;
  world.scanner().wake();
  while (world.scanner().awake()) {
    while (world.next()) ++count;
    for (; !world.isolated().empty();) world.done(0, true);
  }
  return count;
}

TEST(BuddyTest, free_blocks_merge_to_the_largest_again) {
  BuddyWorld world({.zones = {{0, 8 * kMiBPages}}});
  std::vector<uint64_t> pages;
  for (size_t i = 0; i < 8 * kMiBPages; ++i) pages.push_back(world.allocate(0, 0));
  EXPECT_EQ(world.allocate(0, 0), kNoMemory);
  EXPECT_EQ(world.zone(0).free_bytes(), 0);
  world.check();
  std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
  for (const uint64_t page : pages) world.free(page);
  world.check();
  EXPECT_EQ(world.zone(0).area(kOrderMax).nr_free(), 2);
  for (unsigned order = 0; order < kOrderMax; ++order) {
    EXPECT_EQ(world.zone(0).area(order).nr_free(), 0);
  }
}

TEST(BuddyTest, an_unaligned_zone_loses_no_page_at_its_ends) {
  BuddyWorld world(two_zones());
  world.check();
  EXPECT_EQ(world.zone(0).free_bytes(), (16 * kMiBPages - 5) * kBuddyPage);
  EXPECT_EQ(world.zone(1).free_bytes(), (200 * kMiBPages - 3) * kBuddyPage);
}

TEST(BuddyDeathTest, a_double_free_is_caught) {
  BuddyWorld world({.zones = {{0, kMiBPages}}});
  const uint64_t page = world.allocate(0, 3);
  world.zone(0).free(page);
  EXPECT_DEATH(world.zone(0).free(page), "kAllocated");
}

TEST(ScannerTest, every_free_block_is_reported_once) {
  BuddyWorld world(two_zones());
  const size_t first = report_all(world);
  EXPECT_GT(first, 50);
  EXPECT_TRUE(world.all_reported());
  world.check();
  EXPECT_EQ(report_all(world), 0);  // and not again
}

TEST(ScannerTest, never_more_than_the_bound_is_away) {
  BuddyWorld world(two_zones());
  world.scanner().wake();
  while (world.next()) world.check();
  EXPECT_TRUE(world.scanner().awake());  // not done: waits for the host
  EXPECT_EQ(world.scanner().isolated_bytes(), uint64_t{64} << 20);
  while (world.scanner().isolated_bytes() > uint64_t{60} << 20) world.done(0, true);
  EXPECT_TRUE(world.next().has_value());
  EXPECT_EQ(world.scanner().isolated_most(), uint64_t{64} << 20);
}

// Without the truth beside it, which would be large.
TEST(ScannerTest, ten_gib_freed_at_once_never_have_more_than_64_mib_away) {
  constexpr uint64_t kBytes = uint64_t{10} << 30;
  std::vector<PageRecord> records(Zone::records_for(0, kBytes));
  Zone zone;
  zone.init(0, kBytes, records.data());
  zone.add(0, kBytes, false);
  Scanner scanner;
  scanner.init(&zone, 1, {});
  EXPECT_TRUE(scanner.due());
  scanner.wake();
  std::vector<uint64_t> away;
  uint64_t reported = 0;
  while (scanner.awake() || !away.empty()) {
    FreeBlock block;
    while (scanner.next(block)) {
      away.push_back(block.address);
      reported += block.bytes;
      ASSERT_LE(scanner.isolated_bytes(), uint64_t{64} << 20);
      ASSERT_GE(zone.free_bytes(), kBytes - (uint64_t{64} << 20));  // the rest can be allocated
    }
    for (const uint64_t address : away) scanner.done(address, true);
    away.clear();
  }
  EXPECT_EQ(reported, kBytes);
  EXPECT_EQ(scanner.isolated_most(), uint64_t{64} << 20);
}

TEST(ScannerTest, frees_wake_it_at_the_high_water_mark_and_not_below) {
  BuddyWorld world(two_zones());
  report_all(world);
  std::vector<uint64_t> blocks;
  for (size_t i = 0; i < 16; ++i) blocks.push_back(world.allocate(1, 10));
  EXPECT_FALSE(world.scanner().due());
  for (size_t i = 0; i < 15; ++i) world.free(blocks[i]);
  EXPECT_FALSE(world.scanner().due());
  world.free(blocks[15]);
  EXPECT_TRUE(world.scanner().due());
  report_all(world);
  EXPECT_FALSE(world.scanner().due());
}

TEST(ScannerTest, what_was_freed_counts_though_it_was_allocated_again) {
  BuddyWorld world(two_zones());
  report_all(world);
  for (int i = 0; i < 20; ++i) world.free(world.allocate(1, 10));
  // One block's worth is new, not 20; but 20 came, and that is what the count is of.
  EXPECT_TRUE(world.scanner().due());
  EXPECT_EQ(report_all(world), 1);
}

TEST(ScannerTest, allocation_prefers_what_the_host_still_backs) {
  BuddyWorld world({.zones = {{0, 64 * kMiBPages}}});
  const uint64_t block = world.allocate(0, 10);
  report_all(world);
  world.free(block);
  EXPECT_EQ(world.allocate(0, 10), block);
}

TEST(ScannerTest, the_untouched_half_of_a_split_block_stays_reported) {
  BuddyWorld world({.zones = {{0, 4 * kMiBPages}}});
  report_all(world);
  const uint64_t half = world.allocate(0, 9);
  EXPECT_EQ(report_all(world), 0);
  world.free(half);  // merges; the whole is not reported any more
  EXPECT_EQ(report_all(world), 1);
}

TEST(ScannerTest, a_page_used_beside_it_unmarks_a_block) {
  BuddyWorld world({.zones = {{0, 2 * kMiBPages}}});
  report_all(world);
  world.free(world.allocate(0, 0));
  EXPECT_FALSE(world.all_reported());
  EXPECT_EQ(report_all(world), 1);
}

TEST(ScannerTest, what_comes_back_unreported_is_found_again) {
  BuddyWorld::Shape shape{.zones = {{0, 4 * kMiBPages}}};
  shape.scanner.high_water = 1;
  BuddyWorld world(shape);
  world.scanner().wake();
  ASSERT_TRUE(world.next());
  EXPECT_FALSE(world.next());  // asleep
  world.done(0, false);
  world.check();
  EXPECT_TRUE(world.scanner().due());
  EXPECT_EQ(report_all(world), 1);
}

TEST(ScannerTest, a_report_leaves_the_counts_as_they_were) {
  BuddyWorld world({.zones = {{0, 4 * kMiBPages}}});
  const FreeArea& area = world.zone(0).area(10);
  world.scanner().wake();
  ASSERT_TRUE(world.next());
  EXPECT_EQ(area.nr_freed, 0);
  EXPECT_EQ(area.nr_bound, 0);
  EXPECT_EQ(area.nr_isolated, 1);
  world.done(0, true);
  EXPECT_EQ(area.nr_freed, 1);
  EXPECT_EQ(area.nr_bound, 0);
  EXPECT_EQ(area.nr_isolated, 0);
}

TEST(ScannerTest, after_a_reset_of_the_device_nothing_is_away_or_lost) {
  BuddyWorld world(two_zones());
  world.scanner().wake();
  while (world.next()) {
  }
  world.abandon();
  world.check();
  EXPECT_EQ(world.scanner().isolated_bytes(), 0);
  EXPECT_GT(report_all(world), 50);
  EXPECT_TRUE(world.all_reported());
}

TEST(ScannerTest, a_block_that_is_away_is_neither_allocated_nor_merged) {
  BuddyWorld world({.zones = {{0, 4 * kMiBPages}}});
  const uint64_t low = world.allocate(0, 9);
  world.scanner().wake();
  const auto away = world.next();
  ASSERT_TRUE(away);
  EXPECT_EQ(world.allocate(0, 0), kNoMemory);
  world.free(low);
  EXPECT_EQ(world.zone(0).area(10).nr_free(), 0);
  world.check();
  world.done(0, true);
  EXPECT_EQ(world.zone(0).area(10).nr_free(), 1);
  world.check();
}

// Property: whatever is allocated, freed and reported in whatever order, nothing is lost, the
// counters are the truth, and nothing is reported twice for nothing.
void run_at_random(unsigned seed, const BuddyWorld::Shape& shape, int steps) {
  std::mt19937 random(seed);
  BuddyWorld world(shape);
  const auto below = [&](size_t n) {
    return std::uniform_int_distribution<size_t>(0, n - 1)(random);
  };
  for (int step = 0; step < steps; ++step) {
    switch (below(8)) {
      case 0:
      case 1: {
        // Small ones fragment; large ones make the scanner run short.
        const auto order = static_cast<unsigned>(below(shape.order_max + 1));
        world.allocate(below(world.zone_count()), order);
        break;
      }
      case 2:
      case 3:
      case 4: {
        if (world.allocated().empty()) break;
        auto it = world.allocated().begin();
        std::advance(it, static_cast<ptrdiff_t>(below(world.allocated().size())));
        world.free(it->first);
        break;
      }
      case 5:
        if (world.scanner().due() || below(8) == 0) world.scanner().wake();
        break;
      case 6:
        world.next();
        break;
      default:
        if (!world.isolated().empty()) world.done(below(world.isolated().size()), below(16) != 0);
    }
    if (step % 64 == 0) world.check();
    if (testing::Test::HasFailure()) FAIL() << "seed " << seed << " step " << step;
  }
  while (!world.isolated().empty()) world.done(0, true);
  report_all(world);
  world.check();
  EXPECT_TRUE(world.all_reported());
  while (!world.allocated().empty()) world.free(world.allocated().begin()->first);
  report_all(world);
  world.check();
  for (size_t z = 0; z < world.zone_count(); ++z) {
    EXPECT_EQ(world.zone(z).free_bytes(), world.zone(z).end() - world.zone(z).begin());
  }
}

TEST(ScannerPropertyTest, counters_equal_the_truth_after_random_operations) {
  BuddyWorld::Shape small;
  small.zones = {{1, 60}, {61, 128}};
  small.order_max = 4;
  small.scanner = {.isolated_max = 40 * kBuddyPage, .order_min = 2, .high_water = 2};
  for (unsigned seed = 1; seed <= 20; ++seed) run_at_random(seed, small, 5000);
}

TEST(ScannerPropertyTest, real_sizes_at_random) {
  BuddyWorld::Shape shape;
  shape.zones = {{3, 10 * kMiBPages}, {10 * kMiBPages, 27 * kMiBPages}};
  shape.scanner.isolated_max = uint64_t{8} << 20;
  shape.scanner.high_water = 2;
  for (unsigned seed = 1; seed <= 3; ++seed) run_at_random(seed, shape, 2000);
}

// Every state that a tiny zone and its scanner can get into, by every operation that is possible in
// it. A state is what the next operation can depend on; with a high water mark of one the counts
// matter only in so far as the scanner is due or not.
class Exhaustive {
 public:
  explicit Exhaustive(BuddyWorld::Shape shape) : shape_(std::move(shape)) {}

  // Breadth first, up to `depth` operations; returns how many states there are.
  size_t run(size_t depth) {
    std::vector<std::string> level{""};
    seen_.insert(state_after(""));
    for (size_t i = 0; i < depth && !level.empty(); ++i) {
      std::vector<std::string> next;
      for (const std::string& path : level) {
        for (char op = kAllocate; op < kOperations; ++op) {
          const std::string longer = path + op;
          const std::string state = state_after(longer);
          if (testing::Test::HasFailure()) return seen_.size();
          if (!state.empty() && seen_.insert(state).second) next.push_back(longer);
        }
      }
      level = std::move(next);
    }
    closed_ = level.empty();
    return seen_.size();
  }
  // No operation led to a state that was not seen.
  [[nodiscard]] bool closed() const { return closed_; }

 private:
  static constexpr char kEach = 8;  // more than are ever allocated, or away
  enum Operation : char {
    kAllocate = 'A',                    // of order 0, 1, ...
    kFree = kAllocate + kOrderMax + 1,  // the first, second, ... of what is allocated
    kTaken = kFree + kEach,             // the host took the first, second, ... that is away
    kRefused = kTaken + kEach,          // or did not
    kWake = kRefused + kEach,
    kNext,
    kAbandon,
    kOperations
  };

  // Does the operations and checks; empty if the last one does not apply.
  std::string state_after(const std::string& path) {
    BuddyWorld world(shape_);
    for (size_t i = 0; i < path.size(); ++i) {
      if (!apply(world, path[i])) return "";
    }
    world.check();
    std::string state = describe(world);
    // However it got there, the scanner finds all that is left.
    while (!world.isolated().empty()) world.done(0, true);
    report_all(world);
    EXPECT_TRUE(world.all_reported());
    if (testing::Test::HasFailure()) ADD_FAILURE() << "after " << path << " in " << state;
    return state;
  }

  bool apply(BuddyWorld& world, char op) const {
    if (op < kFree) {
      const auto order = static_cast<unsigned>(op - kAllocate);
      return order <= shape_.order_max && world.allocate(0, order) != kNoMemory;
    }
    if (op < kTaken) {
      const auto index = static_cast<size_t>(op - kFree);
      if (index >= world.allocated().size()) return false;
      world.free(std::next(world.allocated().begin(), static_cast<ptrdiff_t>(index))->first);
      return true;
    }
    if (op < kWake) {
      const bool taken = op < kRefused;
      const auto index = static_cast<size_t>(op - (taken ? kTaken : kRefused));
      if (index >= world.isolated().size()) return false;
      world.done(index, taken);
      return true;
    }
    if (op == kWake) {
      if (world.scanner().awake()) return false;
      world.scanner().wake();
      return true;
    }
    if (op == kAbandon) {
      if (world.isolated().empty()) return false;
      world.abandon();
      return true;
    }
    if (!world.scanner().awake()) return false;
    world.next();
    return true;
  }

  std::string describe(BuddyWorld& world) const {
    std::string text = world.scanner().awake() ? "awake" : "asleep";
    text += world.scanner().due() ? " due" : "";
    const Zone& zone = world.zone(0);
    for (unsigned order = 0; order <= shape_.order_max; ++order) {
      text += " |";
      for (uint32_t at = zone.area(order).first; at != kNoPage;) {
        const PageRecord& r = zone.record(zone.address_of(at));
        text += " " + std::to_string(at) + (r.reported ? "r" : "");
        at = r.next;
      }
    }
    for (const auto& [address, order] : world.allocated()) {
      text += " a" + std::to_string(address / kBuddyPage) + "." + std::to_string(order);
    }
    for (const FreeBlock& b : world.isolated()) {
      text += " i" + std::to_string(b.address / kBuddyPage) + "." + std::to_string(b.bytes);
    }
    return text;
  }

  BuddyWorld::Shape shape_;
  std::set<std::string> seen_;
  bool closed_ = false;
};

TEST(ScannerExhaustiveTest, every_state_of_a_zone_of_four_pages) {
  BuddyWorld::Shape shape{.zones = {{0, 4}}, .order_max = 2};
  shape.scanner = {.isolated_max = 4 * kBuddyPage, .order_min = 0, .high_water = 1};
  Exhaustive all(shape);
  EXPECT_GT(all.run(1000), 500);
  EXPECT_TRUE(all.closed());
}

TEST(ScannerExhaustiveTest, every_state_of_a_zone_with_pages_too_small_to_report) {
  BuddyWorld::Shape shape{.zones = {{1, 8}}, .order_max = 2};
  shape.scanner = {.isolated_max = 4 * kBuddyPage, .order_min = 1, .high_water = 1};
  Exhaustive all(shape);
  EXPECT_GT(all.run(1000), 4000);
  EXPECT_TRUE(all.closed());
}

}  // namespace
}  // namespace kernel
