#include "memory/chunk_table.h"

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

#include "memory/interleavings_test_util.h"

namespace lethe {
namespace {

using Table = ChunkTable<ModelAtomic>;

// What half a chunk holds. Not atomic in life: the owner writes it, and two may write at once only
// where the table's comment says so.
enum Content : uint64_t { kHole, kSecret, kScrubValue };

constexpr uint64_t kOld = 10;  // when the secrets of the set-up were taken
constexpr uint64_t kDeadline = 20;
constexpr uint64_t kNew = 30;  // when takes under test happen

// A table and the model of its memory; actors that do what the pool's threads do.
class Model {
 public:
  explicit Model(std::vector<ChunkState> states)
      : x_table(std::make_unique<Table>(states.size())), x_halves(2 * states.size()) {
    for (size_t slot = 0; slot < states.size(); ++slot) {
      if (states[slot] == ChunkState::kEmpty) continue;
      (void)x_table->take_empty();
      x_held.store(x_held.load() + 1);
      if (states[slot] == ChunkState::kDirty) {
        set(slot, kSecret);
        x_table->put_dirty(slot, kOld);
      } else {
        set(slot, kScrubValue);
        x_table->put_clean(slot);
      }
    }
  }

  // The table's Memory.
  void scrub(size_t slot) { set(slot, kScrubValue); }
  void discard(size_t slot) { set(slot, kHole); }
  void scrubbed(const Table::Claim&) {}
  void expired(const Table::Claim&) {}
  void freed() { add_held(-1); }

  Interleavings::Actor worker() {
    return {.run = [this] { (void)x_table->scrub_one(*this); }};
  }
  Interleavings::Actor expirer() {
    return {.run = [this] { x_table->expire(kDeadline, *this); },
            .ended = [this] { no_old_secret(); }};
  }
  // The balloon's thread: moves a chunk in, if there is a slot.
  Interleavings::Actor giver() {
    return {.run = [this] {
      const auto claim = x_table->take_empty();
      if (!claim) return;
      add_held(1);
      set(claim->slot, kSecret);
      x_table->put_dirty(claim->slot, kNew);
    }};
  }
  // The fault thread: clean, else dirty and scrubbed by itself, else fresh; always something.
  Interleavings::Actor taker() {
    return {.run = [this] {
      auto claim = x_table->take_clean();
      if (!claim) {
        claim = x_table->take_dirty();
        if (!claim) return;  // a fresh one
        scrub(claim->slot);
      }
      for (const size_t half : {2 * claim->slot, 2 * claim->slot + 1})
        EXPECT_EQ(x_halves[half].load(), kScrubValue) << "the guest got something else";
      discard(claim->slot);  // moved away
      x_table->put_empty(claim->slot);
      add_held(-1);
    }};
  }
  Interleavings::Actor trimmer() {
    return {.run = [this] {
      auto claim = x_table->take_clean();
      if (!claim) claim = x_table->take_dirty();
      if (!claim) return;
      discard(claim->slot);
      x_table->put_empty(claim->slot);
      add_held(-1);
    }};
  }

  size_t explore(std::vector<Interleavings::Actor> actors) {
    return x_explorer.explore(std::move(actors), [this] { at_end(); });
  }
  [[nodiscard]] size_t steps_max() const { return x_explorer.steps_max(); }

 private:
  void set(size_t slot, Content content) {
    x_halves[2 * slot].store(content);
    x_halves[2 * slot + 1].store(content);
  }
  // A counter: one step, as fetch_add is.
  void add_held(int by) {
    uint64_t held = x_held.load();
    while (!x_held.compare_exchange_strong(held, held + static_cast<uint64_t>(by),
                                           std::memory_order_relaxed, std::memory_order_relaxed)) {
    }
  }
  [[nodiscard]] bool has_secret(size_t slot) const {
    return x_halves[2 * slot].peek() == kSecret || x_halves[2 * slot + 1].peek() == kSecret;
  }
  // What expire() promises: secrets taken before the deadline are gone, but for what a thread of
  // normal priority (Taken) is scrubbing right now.
  void no_old_secret() const {
    for (size_t slot = 0; slot < x_table->size(); ++slot) {
      const auto [state, since] = x_table->peek(slot);
      if (state != ChunkState::kTaken && since <= kDeadline) {
        EXPECT_FALSE(has_secret(slot))
            << "slot " << slot << " in state " << static_cast<int>(state);
      }
    }
  }
  // All threads have left: no slot is lost, and each holds what its state says.
  void at_end() const {
    uint64_t held = 0;
    for (size_t slot = 0; slot < x_table->size(); ++slot) {
      const auto [state, since] = x_table->peek(slot);
      for (const size_t half : {2 * slot, 2 * slot + 1}) {
        if (state == ChunkState::kEmpty) EXPECT_EQ(x_halves[half].peek(), kHole);
        if (state == ChunkState::kClean) EXPECT_EQ(x_halves[half].peek(), kScrubValue);
      }
      EXPECT_TRUE(state == ChunkState::kEmpty || state == ChunkState::kClean ||
                  state == ChunkState::kDirty)
          << "slot " << slot << " is left in state " << static_cast<int>(state);
      held += state == ChunkState::kEmpty ? 0 : 1;
    }
    EXPECT_EQ(x_held.peek(), held);
  }

  Interleavings x_explorer;
  std::unique_ptr<Table> x_table;
  std::vector<ModelAtomic<uint64_t>> x_halves;
  ModelAtomic<uint64_t> x_held{0};
};

constexpr auto kDirty = ChunkState::kDirty;
constexpr auto kClean = ChunkState::kClean;
constexpr auto kEmpty = ChunkState::kEmpty;

TEST(ChunkTable, a_taker_racing_a_worker_and_the_expirer_gets_clean_memory_in_all_interleavings) {
  Model model({kDirty});
  EXPECT_GT(model.explore({model.taker(), model.worker(), model.expirer()}), 1000U);
}

TEST(ChunkTable, two_workers_and_the_expirer_lose_no_chunk_in_all_interleavings) {
  Model model({kDirty});
  EXPECT_GT(model.explore({model.worker(), model.worker(), model.expirer()}), 1000U);
}

TEST(ChunkTable, a_slot_freed_by_the_expirer_can_be_used_again_at_once_in_all_interleavings) {
  Model model({kDirty});
  EXPECT_GT(model.explore({model.giver(), model.worker(), model.expirer()}), 1000U);
}

TEST(ChunkTable, a_chunk_on_its_way_in_through_and_out_is_never_seen_dirty_in_all_interleavings) {
  Model model({kEmpty});
  EXPECT_GT(model.explore({model.giver(), model.worker(), model.taker()}), 500U);
}

TEST(ChunkTable, trimming_takes_turns_with_all_others_in_all_interleavings) {
  Model model({kClean});
  EXPECT_GT(model.explore({model.giver(), model.trimmer(), model.taker()}), 100U);
  Model dirty({kDirty});
  EXPECT_GT(dirty.explore({dirty.worker(), dirty.trimmer(), dirty.expirer()}), 1000U);
}

TEST(ChunkTable, two_takers_never_get_one_chunk_in_all_interleavings) {
  Model model({kClean, kDirty});
  EXPECT_GT(model.explore({model.taker(), model.taker()}), 1000U);
}

TEST(ChunkTable, all_at_once_on_one_slot_keep_every_promise_in_all_interleavings) {
  Model one({kDirty});
  EXPECT_GT(one.explore({one.giver(), one.worker(), one.taker(), one.expirer()}), 10'000U);
  Model two({kDirty, kDirty});
  EXPECT_GT(two.explore({two.worker(), two.expirer()}), 500U);
}

// Its steps are bounded whatever the others do: two looks and two exchanges a slot, and its work.
TEST(ChunkTable, a_taker_never_waits_for_a_scrub_in_all_interleavings) {
  Model model({kDirty, kDirty});
  EXPECT_GT(model.explore({model.taker(), model.worker()}), 500U);
  EXPECT_LE(model.steps_max(), 2 * 2 * 2 + 16U);
}

TEST(ChunkTable, slots_are_used_in_turn_and_counted_by_state) {
  ChunkTable<> table(3);
  EXPECT_EQ(table.take_empty()->slot, 0U);
  EXPECT_EQ(table.take_empty()->slot, 1U);
  EXPECT_EQ(table.take_empty()->slot, 2U);
  EXPECT_FALSE(table.take_empty());
  table.put_dirty(0, 7);
  table.put_clean(1);
  table.put_empty(2);
  const auto counts = table.count();
  EXPECT_EQ(counts[static_cast<size_t>(kDirty)], 1U);
  EXPECT_EQ(counts[static_cast<size_t>(kClean)], 1U);
  EXPECT_EQ(counts[static_cast<size_t>(kEmpty)], 1U);
  EXPECT_EQ(table.take_dirty()->since_ns, 7U);
  EXPECT_EQ(table.take_clean()->slot, 1U);
  EXPECT_EQ(table.take_empty()->slot, 2U);
}

}  // namespace
}  // namespace lethe
