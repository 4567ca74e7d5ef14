#include "memory/shrinker.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace lethe {
namespace {

class FakeCache : public ShrinkableCache {
 public:
  FakeCache(std::string name, uint64_t bytes, uint64_t objects)
      : name_(std::move(name)), bytes_(bytes), objects_(objects) {}
  std::string_view name() const override { return name_; }
  uint64_t object_bytes() const override { return bytes_; }
  uint64_t count() const override { return objects_; }
  Scanned scan(uint64_t objects_max) override {
    asked_for.push_back(objects_max);
    const uint64_t freed = std::min(objects_max, objects_);
    objects_ -= freed;
    purged_ += freed * bytes_;
    return {.freed = freed, .asked = 0};
  }
  uint64_t purged_bytes() const override { return purged_; }
  std::vector<uint64_t> asked_for;

 private:
  std::string name_;
  uint64_t bytes_, objects_, purged_ = 0;
};

TEST(Shrinker, purging_takes_turns) {
  Shrinker shrinker;
  FakeCache a("a", 10, 100), b("b", 10, 100), c("c", 10, 100);
  const auto ra = shrinker.add(a), rb = shrinker.add(b), rc = shrinker.add(c);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(shrinker.purge(10).freed_bytes, 10U);
  // Each purge found enough in one cache; none was hit more often than the others.
  EXPECT_EQ(a.asked_for.size(), 2U);
  EXPECT_EQ(b.asked_for.size(), 2U);
  EXPECT_EQ(c.asked_for.size(), 2U);
}

TEST(Shrinker, next_purge_starts_where_the_last_one_ended) {
  Shrinker shrinker;
  FakeCache a("a", 1, 5), b("b", 1, 100), c("c", 1, 100);
  const auto ra = shrinker.add(a), rb = shrinker.add(b), rc = shrinker.add(c);
  EXPECT_EQ(shrinker.purge(20).freed_bytes, 20U);  // all of a, and some of b
  EXPECT_EQ(a.count(), 0U);
  EXPECT_EQ(b.count(), 85U);
  EXPECT_EQ(shrinker.purge(20).freed_bytes, 20U);
  EXPECT_EQ(c.count(), 80U);
  EXPECT_EQ(b.count(), 85U);
}

TEST(Shrinker, purge_asks_each_cache_once_and_ends) {
  Shrinker shrinker;
  FakeCache a("a", 4096, 1), b("b", 100, 3);
  const auto ra = shrinker.add(a), rb = shrinker.add(b);
  EXPECT_EQ(shrinker.bytes(), 4396U);
  EXPECT_EQ(shrinker.purge(UINT64_MAX).freed_bytes, 4396U);
  EXPECT_EQ(shrinker.bytes(), 0U);
  EXPECT_EQ(a.asked_for.size(), 1U);
  EXPECT_EQ(shrinker.purge(1).freed_bytes, 0U);
}

TEST(Shrinker, asks_for_whole_objects_rounded_up) {
  Shrinker shrinker;
  FakeCache a("a", 4096, 9);
  const auto ra = shrinker.add(a);
  EXPECT_EQ(shrinker.purge(4097).freed_bytes, 8192U);
  EXPECT_EQ(shrinker.purge(0).freed_bytes, 0U);
  EXPECT_EQ(a.asked_for, std::vector<uint64_t>{2});
}

TEST(Shrinker, turns_stay_fair_while_caches_come_and_go) {
  Shrinker shrinker;
  FakeCache a("a", 1, 1000), b("b", 1, 1000), c("c", 1, 1000);
  auto ra = shrinker.add(a), rb = shrinker.add(b), rc = shrinker.add(c);
  (void)shrinker.purge(1);  // a; next: b
  ra = {};
  (void)shrinker.purge(1);
  EXPECT_EQ(b.asked_for.size(), 1U);
  rb = {};
  (void)shrinker.purge(1);
  EXPECT_EQ(c.asked_for.size(), 1U);
  rc = {};
  EXPECT_EQ(shrinker.purge(1).freed_bytes, 0U);
}

TEST(Shrinker, moved_registration_ends_once) {
  Shrinker shrinker;
  FakeCache a("a", 1, 10);
  std::optional<Shrinker::Registration> kept;
  {
    auto first = shrinker.add(a);
    kept.emplace(std::move(first));
  }
  EXPECT_EQ(shrinker.purge(1).freed_bytes, 1U);
  kept.reset();
  EXPECT_EQ(shrinker.purge(1).freed_bytes, 0U);
}

// The registration's end waits for a purge under way: afterwards nobody touches the cache.
TEST(Shrinker, caches_come_and_go_while_purges_run) {
  Shrinker shrinker;
  FakeCache stays("stays", 1, UINT64_MAX);
  const auto registration = shrinker.add(stays);
  std::atomic<bool> stop{false};
  std::thread purging([&] {
    while (!stop) (void)shrinker.purge(5);
  });
  for (int i = 0; i < 2000; ++i) {
    auto cache = std::make_unique<FakeCache>("goes", 1, 3);
    const auto goes = shrinker.add(*cache);
  }
  stop = true;
  purging.join();
}

struct Sink : MetricSink {
  void counter(std::string_view name, std::string_view, uint64_t value, Labels labels) override {
    put(name, static_cast<double>(value), labels);
  }
  void gauge(std::string_view name, std::string_view, double value, Labels labels) override {
    put(name, value, labels);
  }
  void histogram(std::string_view, std::string_view, const Histogram::Snapshot&, Labels) override {}
  void put(std::string_view name, double value, Labels labels) {
    std::string key(name);
    for (const auto& label : labels) key.append("/").append(label.value);
    values[key] = value;
  }
  std::map<std::string, double> values;
};

TEST(Shrinker, metrics_name_each_cache_with_its_true_count) {
  Shrinker shrinker;
  FakeCache a("a", 10, 100), b("b", 1, 7);
  const auto ra = shrinker.add(a), rb = shrinker.add(b);
  (void)shrinker.purge(30);
  Sink sink;
  shrinker.report_metrics(sink);
  EXPECT_EQ(sink.values["lethe_cache_purgeable_bytes/a"], 970);
  EXPECT_EQ(sink.values["lethe_cache_purged_bytes_total/a"], 30);
  EXPECT_EQ(sink.values["lethe_cache_purgeable_bytes/b"], 7);
  EXPECT_EQ(sink.values["lethe_shrinker_purges_total"], 1);
}

}  // namespace
}  // namespace lethe
