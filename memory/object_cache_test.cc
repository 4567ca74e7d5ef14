#include "memory/object_cache.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "memory/shrinker.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Objects that count themselves, and know whether someone has them.
struct Thing {
  explicit Thing(std::atomic<int64_t>& count) : live(&count) { ++*live; }
  ~Thing() { --*live; }
  Thing(const Thing&) = delete;
  Thing& operator=(const Thing&) = delete;
  std::atomic<int64_t>* live;
  std::atomic<bool> in_use{false};
};
using Object = std::unique_ptr<Thing>;

template <typename Lock>
struct Fixture {
  explicit Fixture(size_t capacity)
      : cache({.name = "things", .capacity = capacity, .object_bytes = 8, .make = [this] {
                 return fail ? std::nullopt : std::optional<Object>(std::make_unique<Thing>(live));
               }}) {}
  std::atomic<int64_t> live{0};
  bool fail = false;
  ObjectCache<Object, Lock> cache;
};

template <typename Cache>
void expect_true_counts(const Cache& cache, int64_t live, size_t outside) {
  const auto state = cache.state();
  ASSERT_EQ(static_cast<int64_t>(state.free + outside), live);
  ASSERT_GE(state.free, state.reserved);
  ASSERT_EQ(cache.count(), state.free - state.reserved);
  const auto& c = state.counters;
  ASSERT_EQ(state.free + c.taken + c.purged + c.dropped, c.made + c.returned);
}

TEST(ObjectCache, reserved_objects_are_made_once_and_taken_without_making) {
  Fixture<Mutex> f(4);
  auto reserved = f.cache.reserve(3);
  ASSERT_TRUE(reserved);
  f.fail = true;
  std::vector<Object> taken;
  while (reserved->left() > 0) taken.push_back(reserved->take());
  EXPECT_EQ(taken.size(), 3U);
  for (auto& object : taken) f.cache.give_back(std::move(object));
  EXPECT_EQ(f.cache.count(), 3U);
  EXPECT_TRUE(f.cache.reserve(3));   // from what is there
  EXPECT_FALSE(f.cache.reserve(4));  // one would have to be made
  EXPECT_EQ(f.cache.count(), 3U);
}

TEST(ObjectCache, refuses_to_reserve_more_than_its_capacity_in_all) {
  Fixture<Mutex> f(4);
  auto three = f.cache.reserve(3);
  ASSERT_TRUE(three);
  EXPECT_FALSE(f.cache.reserve(2));
  EXPECT_TRUE(f.cache.reserve(1));
  EXPECT_FALSE(f.cache.reserve(SIZE_MAX));
}

TEST(ObjectCache, scan_takes_what_is_free_and_nothing_reserved) {
  Fixture<Mutex> f(4);
  for (int i = 0; i < 4; ++i) f.cache.give_back(std::make_unique<Thing>(f.live));
  auto reserved = f.cache.reserve(3);
  ASSERT_TRUE(reserved);
  EXPECT_EQ(f.cache.count(), 1U);
  EXPECT_EQ(f.cache.scan(100).freed, 1U);
  EXPECT_EQ(f.cache.scan(100).freed, 0U);
  EXPECT_EQ(f.live, 3);
  for (int i = 0; i < 3; ++i) EXPECT_NE(reserved->take(), nullptr);
}

TEST(ObjectCache, keeps_no_more_than_its_capacity) {
  Fixture<Mutex> f(2);
  for (int i = 0; i < 5; ++i) f.cache.give_back(std::make_unique<Thing>(f.live));
  EXPECT_EQ(f.live, 2);
  EXPECT_EQ(f.cache.state().counters.dropped, 3U);
}

TEST(ObjectCache, cache_without_a_lock_is_purged_by_its_owner_when_asked) {
  std::atomic<int64_t> live{0};
  std::atomic<int> woken{0};
  ObjectCache<Object, NoLock> cache(
      {.name = "owned",
       .capacity = 8,
       .object_bytes = 8,
       .make = [&] { return std::optional<Object>(std::make_unique<Thing>(live)); },
       .wake = [&] { ++woken; }});
  for (int i = 0; i < 5; ++i) cache.give_back(std::make_unique<Thing>(live));
  std::thread([&] {
    const auto first = cache.scan(3);
    EXPECT_EQ(first.freed, 0U);
    EXPECT_EQ(first.asked, 3U);
    EXPECT_EQ(cache.scan(100).asked, 2U);  // the rest: 3 are promised already
    EXPECT_EQ(cache.scan(100).asked, 0U);
  }).join();
  EXPECT_EQ(woken, 2);
  EXPECT_EQ(live, 5);  // nobody but the owner touches them
  EXPECT_EQ(cache.purge_as_asked(), 5U);
  EXPECT_EQ(live, 0);
  EXPECT_EQ(cache.purged_bytes(), 5U * 8);
  EXPECT_EQ(cache.purge_as_asked(), 0U);
}

// Runs the same random operations on both kinds, and compares every number after each of them.
TEST(ObjectCache, cache_without_a_lock_and_one_with_count_the_same) {
  Fixture<Mutex> locked(16);
  Fixture<NoLock> owned(16);
  std::mt19937 random(1);
  std::vector<Object> locked_out, owned_out;
  for (int i = 0; i < 100'000; ++i) {
    const size_t n = random() % 6;
    switch (random() % 3) {
      case 0: {
        auto a = locked.cache.reserve(n);
        auto b = owned.cache.reserve(n);
        ASSERT_EQ(a.has_value(), b.has_value());
        if (!a) break;
        for (size_t take = random() % (n + 1); take > 0; --take) {
          locked_out.push_back(a->take());
          owned_out.push_back(b->take());
        }
        break;
      }
      case 1:
        for (size_t give = std::min(n, locked_out.size()); give > 0; --give) {
          locked.cache.give_back(std::move(locked_out.back()));
          owned.cache.give_back(std::move(owned_out.back()));
          locked_out.pop_back();
          owned_out.pop_back();
        }
        break;
      default: {
        const uint64_t freed = locked.cache.scan(n).freed;
        ASSERT_EQ(owned.cache.scan(n).asked, freed);
        ASSERT_EQ(owned.cache.purge_as_asked(), freed);
      }
    }
    ASSERT_EQ(locked.cache.count(), owned.cache.count());
    ASSERT_EQ(locked.live, owned.live);
    ASSERT_EQ(locked.cache.purged_bytes(), owned.cache.purged_bytes());
    const auto a = locked.cache.state().counters;
    const auto b = owned.cache.state().counters;
    ASSERT_EQ(a.made, b.made);
    ASSERT_EQ(a.dropped, b.dropped);
  }
}

TEST(ObjectCache, counters_equal_the_truth_after_a_million_random_operations) {
  Fixture<Mutex> f(32);
  std::mt19937 random(7);
  std::vector<Object> out;
  using Reservation = ObjectCache<Object>::Reservation;
  std::vector<Reservation> reservations;
  size_t reserved = 0;
  for (int i = 0; i < 1'000'000; ++i) {
    switch (random() % 6) {
      case 0:
      case 1: {
        const size_t n = random() % 8;
        f.fail = random() % 16 == 0;
        if (auto reservation = f.cache.reserve(n)) {
          reservations.push_back(std::move(*reservation));
          reserved += n;
        }
        break;
      }
      case 2:
        if (reservations.empty()) break;
        reserved -= reservations.back().left();
        reservations.pop_back();
        break;
      case 3:
        if (reservations.empty() || reservations.back().left() == 0) break;
        out.push_back(reservations.back().take());
        --reserved;
        break;
      case 4:
        if (out.empty()) break;
        f.cache.give_back(std::move(out.back()));
        out.pop_back();
        break;
      default:
        (void)f.cache.scan(random() % 8);
    }
    ASSERT_EQ(f.cache.state().reserved, reserved);
    expect_true_counts(f.cache, f.live, out.size());
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(f.cache.state().counters.purged, 1000U);
  EXPECT_GT(f.cache.state().counters.taken, 1000U);
}

TEST(ObjectCache, operation_that_reserved_never_finds_it_empty_while_the_shrinker_runs) {
  Fixture<Mutex> f(24);
  Shrinker shrinker;
  const auto registration = shrinker.add(f.cache);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> operations{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      while (!stop) {
        const size_t n = 1 + random() % 8;
        auto reserved = f.cache.reserve(n);  // 3 threads of at most 8: never refused
        ASSERT_TRUE(reserved);
        std::vector<Object> mine;
        for (size_t take = random() % (n + 1); take > 0; --take) {
          mine.push_back(reserved->take());  // asserts that there is one
          ASSERT_FALSE(mine.back()->in_use.exchange(true));
        }
        for (auto& object : mine) {
          object->in_use = false;
          f.cache.give_back(std::move(object));
        }
        ++operations;
      }
    });
  uint64_t purged = 0;
  std::thread shrinking([&] {
    while (!stop) {
      purged += shrinker.purge(UINT64_MAX / 16).freed_bytes;
      ASSERT_LE(f.cache.count(), 24U);  // never below zero: that would be huge
    }
  });
  const auto deadline = steady_clock::now() + milliseconds(10'000);
  const auto least = steady_clock::now() + milliseconds(200);
  while ((operations < 20'000 || steady_clock::now() < least) && steady_clock::now() < deadline)
    std::this_thread::sleep_for(milliseconds(1));
  stop = true;
  for (auto& thread : threads) thread.join();
  shrinking.join();
  EXPECT_GE(operations, 20'000U);
  EXPECT_GT(purged, 0U);
  EXPECT_EQ(purged, f.cache.purged_bytes());
  EXPECT_EQ(f.cache.state().reserved, 0U);
  expect_true_counts(f.cache, f.live, 0);
}

TEST(ObjectCache, owner_uses_its_cache_while_others_count_and_ask) {
  Fixture<NoLock> f(16);
  Shrinker shrinker;
  const auto registration = shrinker.add(f.cache);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> asked{0};
  std::thread asking([&] {
    while (!stop) {
      asked += shrinker.purge(64).asked_bytes;
      ASSERT_LE(shrinker.bytes(), 16U * 8);
    }
  });
  std::mt19937 random(3);
  const auto deadline = steady_clock::now() + milliseconds(10'000);
  uint64_t operations = 0;
  while ((operations < 50'000 || asked == 0) && steady_clock::now() < deadline) {
    auto reserved = f.cache.reserve(1 + random() % 8);
    ASSERT_TRUE(reserved);
    (void)f.cache.purge_as_asked();
    while (reserved->left() > 0) f.cache.give_back(reserved->take());
    ++operations;
  }
  stop = true;
  asking.join();
  EXPECT_GT(asked, 0U);
  expect_true_counts(f.cache, f.live, 0);
}

}  // namespace
}  // namespace lethe
