// The scrub pool with several threads at once. Content is checked throughout: what a guest finds in
// memory it gave back is the scrub value, and what it writes there stays.
#include <array>
#include <atomic>
#include <vector>

#include "memory/chunk_table.h"
#include "memory/scrub_pool_test_util.h"

namespace lethe {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kWordsPerPage = kPage / sizeof(uint64_t);

// Guest memory as words. Atomic, so that TSan sees no race where the test means none.
std::atomic_ref<uint64_t> word(uint8_t* chunk, uint64_t page, uint64_t index) {
  // SAFETY: inside the chunk, and aligned.
  return std::atomic_ref<uint64_t>(reinterpret_cast<uint64_t*>(chunk + page * kPage)[index]);
}

class ScrubPoolRaceTest : public ScrubPoolTest {};
INSTANTIATE_TEST_SUITE_P(Movers, ScrubPoolRaceTest,
                         ::testing::Values(ChunkMover::kUserfaultMove, ChunkMover::kMremap),
                         mover_name);

// The pool's fault thread is the allocator; it answers while the workers scrub the same chunks.
TEST_P(ScrubPoolRaceTest, an_allocator_racing_the_scrubber_on_every_chunk_never_gets_a_dirty_byte) {
  constexpr size_t kChunks = 8;
  const auto memory = make_memory(kChunks * kChunkBytes);
  auto with = options(kChunks * kChunkBytes);
  with.workers = 2;
  const auto pool = ScrubPool::create(*memory, with);
  fill(host_at_offset(*memory, 0), 0xAA, kChunks * kChunkBytes);
  const auto end = steady_clock::now() + milliseconds(400);
  uint64_t taken = 0;
  uint64_t dirty = 0;
  for (int round = 0; steady_clock::now() < end; ++round) {
    // Sometimes one chunk alone, sometimes some at once; touched at once, or a little later.
    const size_t count = round % 3 == 0 ? 1 : kChunks;
    for (size_t i = 0; i < count; ++i) {
      uint8_t* const chunk = host_at_offset(*memory, i * kChunkBytes);
      if (pool->take(chunk)) {
        ++taken;
      } else {
        ASSERT_EQ(::madvise(chunk, kChunkBytes, MADV_DONTNEED), 0);
      }
    }
    if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50 * (round % 20)));
    for (size_t i = 0; i < count; ++i) {
      uint8_t* const chunk = host_at_offset(*memory, (count - 1 - i) * kChunkBytes);
      for (uint64_t page = 0; page < kChunkBytes / kPage; ++page) {
        for (const uint64_t index : {uint64_t{0}, kWordsPerPage / 2, kWordsPerPage - 1}) {
          if (word(chunk, page, index).load(std::memory_order_relaxed) != 0) ++dirty;
          // The secret that must never be seen again.
          word(chunk, page, index).store(0x5EC4E7, std::memory_order_relaxed);
        }
      }
    }
  }
  EXPECT_EQ(dirty, 0U);
  EXPECT_GT(taken, kChunks);
  const auto stats = pool->stats();
  EXPECT_EQ(stats.stalls, 0U) << "an allocation had to be tried again";
  EXPECT_GT(stats.refaulted_bytes, 0U);
}

// A worker that is stopped in the middle of a chunk, as one at idle priority is on a busy host.
TEST(ChunkTableThreads, a_worker_that_never_finishes_holds_up_no_allocator) {
  struct Memory {
    void scrub(size_t) {
      started.store(true);
      started.notify_all();
      finish.wait(false);
    }
    void discard(size_t) { ++discarded; }
    void scrubbed(const ChunkTable<>::Claim&) {}
    void expired(const ChunkTable<>::Claim&) {}
    void freed() { ++frees; }
    std::atomic<bool> started{false}, finish{false};
    std::atomic<int> discarded{0}, frees{0};
  } memory;
  ChunkTable<> table(2);
  for (size_t slot = 0; slot < 2; ++slot) table.put_dirty(table.take_empty()->slot, slot);
  std::thread worker([&] { (void)table.scrub_one(memory); });
  memory.started.wait(false);
  EXPECT_FALSE(table.take_clean());
  const auto other = table.take_dirty();  // scrubbed by the allocator itself
  ASSERT_TRUE(other);
  EXPECT_FALSE(table.take_dirty()) << "the one that is being scrubbed was given away";
  table.put_empty(other->slot);
  // Its time is up: what the guest left there is gone, though the worker has not moved.
  table.expire(1, memory);
  EXPECT_EQ(memory.discarded, 1);
  EXPECT_EQ(memory.frees, 0);
  memory.finish.store(true);
  memory.finish.notify_all();
  worker.join();
  EXPECT_EQ(memory.frees, 1);
  EXPECT_EQ(table.count()[static_cast<size_t>(ChunkState::kEmpty)], 2U);
}

// Each thread owns a word of every page: it finds there what it wrote, or, once after a return, 0.
class Toucher {
 public:
  Toucher(uint8_t* memory, size_t chunks, uint64_t id)
      : x_memory(memory), x_chunks(chunks), x_id(id) {}
  // Walks through all pages from a place of its own; counts what should not be.
  void walk(uint64_t value) {
    const uint64_t pages = x_chunks * (kChunkBytes / kPage);
    for (uint64_t n = 0; n < pages; n += 3) {
      const uint64_t page = (n + x_id * pages / 7) % pages;
      if (word(x_memory, page, x_id).load(std::memory_order_relaxed) != 0) ++x_dirty;
      word(x_memory, page, x_id).store(tag(value, page), std::memory_order_relaxed);
    }
  }
  void check(uint64_t value) {
    const uint64_t pages = x_chunks * (kChunkBytes / kPage);
    for (uint64_t n = 0; n < pages; n += 3) {
      const uint64_t page = (n + x_id * pages / 7) % pages;
      if (word(x_memory, page, x_id).load(std::memory_order_relaxed) != tag(value, page)) ++x_lost;
    }
  }
  [[nodiscard]] uint64_t dirty() const { return x_dirty; }
  [[nodiscard]] uint64_t lost() const { return x_lost; }

 private:
  [[nodiscard]] uint64_t tag(uint64_t value, uint64_t page) const {
    return value << 40 | page << 8 | (x_id + 1);
  }
  uint8_t* x_memory;
  size_t x_chunks;
  uint64_t x_id;
  uint64_t x_dirty = 0;
  uint64_t x_lost = 0;
};

void on_threads(std::vector<Toucher>& touchers, const std::function<void(Toucher&)>& work) {
  std::vector<std::thread> threads;
  for (Toucher& toucher : touchers) threads.emplace_back([&] { work(toucher); });
  for (std::thread& thread : threads) thread.join();
}

TEST_P(ScrubPoolRaceTest, memory_touched_by_many_threads_at_once_shows_nothing_old_or_foreign) {
  constexpr size_t kChunks = 12;
  const auto memory = make_memory(kChunks * kChunkBytes);
  const auto pool = ScrubPool::create(*memory, options(8 * kChunkBytes));  // some are discarded
  uint8_t* const base = host_at_offset(*memory, 0);
  std::vector<Toucher> touchers;
  for (uint64_t id = 0; id < 4; ++id) touchers.emplace_back(base, kChunks, id);
  on_threads(touchers, [](Toucher& toucher) { toucher.walk(1); });
  for (uint64_t round = 2; round < 8; ++round) {
    for (size_t i = 0; i < kChunks; ++i) {
      uint8_t* const chunk = base + i * kChunkBytes;
      // A few pages beside the whole chunks: small holes.
      if (i % 5 == 4) {
        for (uint64_t page = 0; page < kChunkBytes / kPage; page += 8)
          ASSERT_EQ(::madvise(chunk + page * kPage, 8 * kPage, MADV_DONTNEED), 0);
      } else if (!pool->take(chunk)) {
        ASSERT_EQ(::madvise(chunk, kChunkBytes, MADV_DONTNEED), 0);
      }
    }
    on_threads(touchers, [&](Toucher& toucher) { toucher.walk(round); });
    on_threads(touchers, [&](Toucher& toucher) { toucher.check(round); });
  }
  for (const Toucher& toucher : touchers) {
    EXPECT_EQ(toucher.dirty(), 0U);
    EXPECT_EQ(toucher.lost(), 0U);
  }
  EXPECT_GT(pool->stats().moved_bytes, 0U);
}

TEST_P(ScrubPoolRaceTest, changing_the_limit_while_memory_is_taken_and_touched_loses_nothing) {
  constexpr size_t kChunks = 8;
  const auto memory = make_memory(kChunks * kChunkBytes);
  const auto pool = ScrubPool::create(*memory, options(kChunks * kChunkBytes));
  uint8_t* const base = host_at_offset(*memory, 0);
  std::vector<Toucher> touchers;
  for (uint64_t id = 0; id < 2; ++id) touchers.emplace_back(base, kChunks, id);
  std::atomic<bool> stop{false};
  std::thread governor([&] {
    const std::array<uint64_t, 4> limits{0, kChunkBytes, kChunks * kChunkBytes, 3 * kChunkBytes};
    for (size_t i = 0; !stop; ++i) {
      pool->set_bytes_max(limits[i % limits.size()]);
      std::this_thread::sleep_for(std::chrono::microseconds(700));
    }
  });
  on_threads(touchers, [](Toucher& toucher) { toucher.walk(1); });
  const auto end = steady_clock::now() + milliseconds(400);
  for (uint64_t round = 2; steady_clock::now() < end || round < 5; ++round) {
    for (size_t i = 0; i < kChunks; ++i)
      if (!pool->take(base + i * kChunkBytes))
        ASSERT_EQ(::madvise(base + i * kChunkBytes, kChunkBytes, MADV_DONTNEED), 0);
    on_threads(touchers, [&](Toucher& toucher) { toucher.walk(round); });
    on_threads(touchers, [&](Toucher& toucher) { toucher.check(round); });
  }
  stop = true;
  governor.join();
  for (const Toucher& toucher : touchers) {
    EXPECT_EQ(toucher.dirty(), 0U);
    EXPECT_EQ(toucher.lost(), 0U);
  }
  pool->set_bytes_max(0);
  EXPECT_TRUE(eventually([&] {
    const auto now = pool->stats();
    return now.clean_bytes + now.dirty_bytes + now.scrubbing_bytes == 0;
  }));
}

}  // namespace
}  // namespace lethe
