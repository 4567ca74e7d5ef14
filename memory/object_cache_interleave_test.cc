// Every order of the steps of small cases. reserve() is not one step: where it makes an object, the
// others get their turns.
#include <gtest/gtest.h>

#include <memory>

#include "memory/interleave_test_util.h"
#include "memory/object_cache.h"

namespace lethe {
namespace {

using Object = std::unique_ptr<int>;
using Cache = ObjectCache<Object>;

Cache::Options options(size_t capacity, int& made) {
  return {.name = "test", .capacity = capacity, .object_bytes = 1, .make = [&made] {
            interleave_point();
            return std::optional<Object>(std::make_unique<int>(++made));
          }};
}

void check(const Cache& cache) {
  const auto state = cache.state();
  ASSERT_GE(state.free, state.reserved);
  ASSERT_EQ(cache.count(), state.free - state.reserved);
  const auto& c = state.counters;
  ASSERT_EQ(state.free + c.taken + c.purged + c.dropped, c.made + c.returned);
  ASSERT_EQ(cache.purged_bytes(), c.purged);
}

TEST(ObjectCacheInterleaving, reserved_objects_are_there_in_every_order_of_steps) {
  uint64_t refused = 0;
  uint64_t purged = 0;
  const auto runs = explore_interleavings([&](Interleaver& interleaver) {
    int made = 0;
    Cache cache(options(2, made));
    cache.give_back(std::make_unique<int>(-1));
    const auto operation = [&](size_t objects) {
      auto reserved = cache.reserve(objects);
      if (!reserved) {  // the other one has them all
        ++refused;
        return;
      }
      std::vector<Object> mine;
      for (size_t i = 0; i < objects; ++i) {
        interleave_point();
        mine.push_back(reserved->take());  // would assert if the cache were empty
        ASSERT_NE(mine.back(), nullptr);
        check(cache);
      }
      for (Object& object : mine) cache.give_back(std::move(object));
      check(cache);
    };
    interleaver.run({[&] { operation(2); }, [&] { operation(1); },
                     [&] {
                       for (int i = 0; i < 2; ++i) {
                         const auto scanned = cache.scan(10);
                         purged += scanned.freed;
                         check(cache);
                         interleave_point();
                       }
                     }});
    EXPECT_EQ(cache.state().reserved, 0U);
    check(cache);
  });
  EXPECT_GT(runs, 500U);
  EXPECT_GT(refused, 0U);  // both were seen
  EXPECT_GT(purged, 0U);
}

TEST(ObjectCacheInterleaving, reservation_dropped_half_used_frees_the_rest_in_every_order) {
  const auto runs = explore_interleavings([&](Interleaver& interleaver) {
    int made = 0;
    Cache cache(options(3, made));
    interleaver.run({[&] {
                       auto reserved = cache.reserve(2);
                       ASSERT_TRUE(reserved);
                       interleave_point();
                       const Object one = reserved->take();
                       ASSERT_NE(one, nullptr);
                       interleave_point();
                     },
                     [&] {
                       interleave_point();
                       (void)cache.scan(1);
                       check(cache);
                       interleave_point();
                       (void)cache.scan(1);
                       check(cache);
                     }});
    const auto state = cache.state();
    EXPECT_EQ(state.reserved, 0U);
    EXPECT_EQ(state.free, cache.count());
    check(cache);
  });
  EXPECT_GT(runs, 30U);
}

}  // namespace
}  // namespace lethe
