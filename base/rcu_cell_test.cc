#include "base/rcu_cell.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/test_util.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A version: every word the same, some inside the value and some behind a pointer.
struct Words {
  explicit Words(uint64_t value) : heap(64, value) { inner.fill(value); }
  void set(uint64_t value) {
    inner.fill(value);
    heap.assign(heap.size(), value);
  }
  [[nodiscard]] bool uniform() const {
    for (const uint64_t word : inner)
      if (word != inner[0]) return false;
    for (const uint64_t word : heap)
      if (word != inner[0]) return false;
    return true;
  }
  std::array<uint64_t, 16> inner{};
  std::vector<uint64_t> heap;
};

// Counts its live copies.
struct Counted {
  explicit Counted(std::atomic<int>& live) : live_(&live) { ++*live_; }
  Counted(const Counted& other) : live_(other.live_) { ++*live_; }
  Counted(Counted&& other) noexcept : live_(other.live_) { ++*live_; }
  Counted& operator=(const Counted&) = default;
  ~Counted() { --*live_; }
  std::atomic<int>* live_;
};

TEST(RcuCell, update_edits_a_copy_of_the_current_version) {
  RcuCell<std::vector<int>> cell({1});
  const auto before = cell.read();
  std::thread([&] { cell.update([](auto& v) { v.push_back(2); }); }).join();
  EXPECT_EQ(*before, std::vector<int>({1}));
  EXPECT_EQ(*cell.read(), std::vector<int>({1, 2}));
}

TEST(RcuCell, readers_see_whole_versions_in_order_while_a_writer_runs_at_full_speed) {
  RcuCell<Words> cell{Words(0)};
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> torn{0};
  std::atomic<uint64_t> backwards{0};
  std::atomic<uint64_t> reads{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      uint64_t last = 0;
      while (!stop.load()) {
        const auto guard = cell.read();
        if (!guard->uniform()) ++torn;
        if (guard->inner[0] < last) ++backwards;
        last = guard->inner[0];
        ++reads;
      }
    });
  }
  uint64_t version = 0;
  size_t backlog_max = 0;
  const auto end = steady_clock::now() + milliseconds(300);
  while (steady_clock::now() < end || version < 100) {
    ++version;
    cell.update([&](Words& words) { words.set(version); });
    backlog_max = std::max(backlog_max, cell.backlog());
  }
  EXPECT_TRUE(eventually([&] { return reads.load() > 1000; }));
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(torn, 0U);
  EXPECT_EQ(backwards, 0U);
  EXPECT_LE(backlog_max, 16U);
  EXPECT_EQ(cell.read()->inner[0], version);
}

TEST(RcuCell, backlog_stops_at_its_cap_and_the_writer_waits) {
  constexpr size_t kCap = 4;
  constexpr int kUpdates = 10;
  RcuCell<int> cell(0, kCap);
  std::atomic<int> updated{0};
  std::thread writer;
  {
    const auto guard = cell.read();  // a reader that does not leave
    writer = std::thread([&] {
      for (int i = 1; i <= kUpdates; ++i) {
        cell.update([&](int& value) { value = i; });
        updated = i;
      }
    });
    EXPECT_TRUE(eventually([&] { return updated == kCap; }));
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_EQ(updated, static_cast<int>(kCap)) << "the writer went on past the cap";
    EXPECT_EQ(cell.backlog(), kCap);
    EXPECT_EQ(*guard, 0);
    EXPECT_EQ(*cell.read(), static_cast<int>(kCap)) << "new readers see the newest version";
  }
  EXPECT_TRUE(eventually([&] { return updated == kUpdates; })) << "the writer never went on";
  writer.join();
  EXPECT_LE(cell.backlog(), kCap);
  EXPECT_EQ(*cell.read(), kUpdates);
}

TEST(RcuCell, live_versions_never_exceed_the_cap_and_reclaim_frees_the_rest) {
  constexpr int kCap = 3;
  std::atomic<int> live{0};
  RcuCell<Counted> cell{Counted(live), kCap};
  for (int i = 0; i < 100; ++i) {
    cell.update([](Counted&) {});
    EXPECT_LE(live, kCap + 1);
  }
  cell.reclaim();
  EXPECT_EQ(live, 1);
  EXPECT_EQ(cell.backlog(), 0U);
}

TEST(RcuCell, destruction_frees_everything) {
  std::atomic<int> live{0};
  for (int round = 0; round < 20; ++round) {
    RcuCell<Counted> cell{Counted(live)};
    for (int i = 0; i < 10; ++i) cell.update([](Counted&) {});
  }
  EXPECT_EQ(live, 0);
}

TEST(RcuCell, writers_take_turns_and_lose_no_update) {
  RcuCell<int> cell(0);
  std::vector<std::thread> writers;
  for (int i = 0; i < 3; ++i)
    writers.emplace_back([&] {
      for (int n = 0; n < 200; ++n) cell.update([](int& value) { ++value; });
    });
  for (auto& writer : writers) writer.join();
  EXPECT_EQ(*cell.read(), 600);
}

TEST(RcuCell, reclaim_waits_for_each_guard_that_existed) {
  RcuCell<int> cell(0);
  std::atomic<bool> returned{false};
  std::thread waiter;
  {
    const auto guard = cell.read();
    waiter = std::thread([&] {
      cell.reclaim();
      returned = true;
    });
    std::this_thread::sleep_for(milliseconds(50));
    EXPECT_FALSE(returned);
  }
  EXPECT_TRUE(eventually([&] { return returned.load(); }));
  waiter.join();
}

}  // namespace
}  // namespace lethe
