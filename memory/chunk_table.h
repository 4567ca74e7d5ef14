// The states of the scrub pool's chunks, and the only ways from one to the next.
//
//            take_empty             put_dirty            scrub_one
//   Empty ---------------> Taken ---------------> Dirty ----------> Scrubbing ----------> Clean
//     ^                    |   ^                    |                 |                     |
//     +--------------------+   +--------------------+                 | expire              |
//           put_empty          |     take_dirty, expire               v                     |
//                              |                                Expiring, Expired, Abandoned|
//                              +------------------------------------------------------------+
//                                              take_clean
//
// Each chunk is one atomic word: its state, and when its content was taken from the guest. Every
// step is one compare-exchange on it: who gains Taken, Scrubbing or Clean->Taken owns the memory.
// Nobody ever waits: a step that lost its race tries another chunk.
//
// A worker runs at idle priority and may stop for good in the middle of a chunk; then the content
// must still be forgotten in time. expire() discards the memory under it: the worker can only write
// the scrub value, into fresh pages. Who of the two finishes last frees the slot:
//
//   Scrubbing --expirer--> Expiring --expirer has discarded--> Expired --worker discards--> Empty
//                             |
//                             +--worker is done--> Abandoned --expirer discards again--> Empty
//
// Memory order: the owner's accesses to memory and to data beside the table come before its
// release store; the next owner's compare-exchange acquires it.
//
// Atomic is std::atomic, or the test's model of it: chunk_table_test.cc runs these functions over
// all interleavings of small cases. Memory is told what to do with a slot's memory, scrub(slot) and
// discard(slot), and what has become of a chunk, scrubbed(claim), expired(claim) and, when the
// table itself has made a slot empty, freed(). None of them may touch the table.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

namespace lethe {

enum class ChunkState : uint8_t {
  kEmpty,      // no memory
  kTaken,      // one thread has it
  kDirty,      // holds what a guest left there
  kScrubbing,  // a worker is writing over it
  kClean,
  kExpiring,   // a worker is too slow: its memory is being discarded meanwhile
  kExpired,    // discarded; the worker frees the slot
  kAbandoned,  // the worker is done; who discards frees the slot
};
inline constexpr size_t kChunkStates = 8;

template <template <typename> class Atomic = std::atomic>
class ChunkTable {
 public:
  struct Claim {
    size_t slot = 0;
    uint64_t since_ns = 0;  // when the content was taken from the guest
  };

  explicit ChunkTable(size_t slots) : x_size(slots), x_words(new Atomic<uint64_t>[slots]) {
    for (size_t i = 0; i < slots; ++i) x_words[i].store(0, std::memory_order_relaxed);
  }
  [[nodiscard]] size_t size() const { return x_size; }

  [[nodiscard]] std::optional<Claim> take_empty() {
    return claim(ChunkState::kEmpty, ChunkState::kTaken, x_empty_hint);
  }
  [[nodiscard]] std::optional<Claim> take_clean() {
    return claim(ChunkState::kClean, ChunkState::kTaken, x_clean_hint);
  }
  [[nodiscard]] std::optional<Claim> take_dirty() {
    return claim(ChunkState::kDirty, ChunkState::kTaken, x_dirty_hint);
  }
  // The owner of a Taken slot gives it up.
  void put_dirty(size_t slot, uint64_t since_ns) { put(slot, ChunkState::kDirty, since_ns); }
  void put_clean(size_t slot) { put(slot, ChunkState::kClean, 0); }
  void put_empty(size_t slot) { put(slot, ChunkState::kEmpty, 0); }

  enum class Scrubbed : uint8_t { kNothing, kDone, kExpired };
  // A worker's step: scrubs one dirty chunk. kNothing: there was none. kExpired: it took so long
  // that the chunk was discarded.
  template <typename Memory>
  Scrubbed scrub_one(Memory& memory) {
    const std::optional<Claim> mine =
        claim(ChunkState::kDirty, ChunkState::kScrubbing, x_dirty_hint);
    if (!mine) return Scrubbed::kNothing;
    memory.scrub(mine->slot);
    if (step(*mine, ChunkState::kScrubbing, ChunkState::kClean)) {
      memory.scrubbed(*mine);
      return Scrubbed::kDone;
    }
    // expire() has come by: it still discards (and frees the slot), or it has done so (we free it).
    if (step(*mine, ChunkState::kExpiring, ChunkState::kAbandoned)) return Scrubbed::kExpired;
    memory.discard(mine->slot);
    put_empty(mine->slot);
    memory.freed();
    return Scrubbed::kExpired;
  }

  // Makes the content of every chunk that was taken at `before_ns` or earlier, and is not clean
  // yet, unreadable now. One thread at a time.
  template <typename Memory>
  void expire(uint64_t before_ns, Memory& memory) {
    for (size_t slot = 0; slot < x_size; ++slot) {
      const uint64_t word = x_words[slot].load(std::memory_order_relaxed);
      const Claim claim{slot, since_of(word)};
      const ChunkState state = state_of(word);
      if (state != ChunkState::kDirty && state != ChunkState::kScrubbing) continue;
      if (claim.since_ns > before_ns) continue;
      if (state == ChunkState::kDirty) {
        if (step(claim, ChunkState::kDirty, ChunkState::kTaken)) {
          memory.discard(slot);
          memory.expired(claim);
          put_empty(slot);
          memory.freed();
          continue;
        }
        // Lost to a worker or a taker. A worker may sleep on it: look again.
      }
      if (!step(claim, ChunkState::kScrubbing, ChunkState::kExpiring)) continue;
      memory.discard(slot);
      memory.expired(claim);
      if (step(claim, ChunkState::kExpiring, ChunkState::kExpired)) continue;
      memory.discard(slot);  // Abandoned: what the worker wrote meanwhile
      put_empty(slot);
      memory.freed();
    }
  }

  // For the model's tests, with its atomics: state and time, without a step.
  [[nodiscard]] std::pair<ChunkState, uint64_t> peek(size_t slot) const {
    const uint64_t word = x_words[slot].peek();
    return {state_of(word), since_of(word)};
  }
  [[nodiscard]] ChunkState state(size_t slot) const {
    return state_of(x_words[slot].load(std::memory_order_acquire));
  }
  // How many chunks are in each state: each was at its moment, not all at one.
  [[nodiscard]] std::array<size_t, kChunkStates> count() const {
    std::array<size_t, kChunkStates> counts{};
    for (size_t i = 0; i < x_size; ++i) ++counts[static_cast<size_t>(state(i))];
    return counts;
  }

 private:
  static constexpr unsigned kStateBits = 3;
  static uint64_t word_of(ChunkState state, uint64_t since_ns) {
    return since_ns << kStateBits | static_cast<uint64_t>(state);
  }
  static ChunkState state_of(uint64_t word) { return static_cast<ChunkState>(word & 7U); }
  static uint64_t since_of(uint64_t word) { return word >> kStateBits; }

  bool step(const Claim& claim, ChunkState from, ChunkState to) {
    uint64_t expected = word_of(from, claim.since_ns);
    return x_words[claim.slot].compare_exchange_strong(expected, word_of(to, claim.since_ns),
                                                       std::memory_order_acq_rel,
                                                       std::memory_order_relaxed);
  }
  // The owner's word: nobody else changes Taken; Expired is left to the worker, Abandoned to the
  // expirer.
  void put(size_t slot, ChunkState state, uint64_t since_ns) {
    x_words[slot].store(word_of(state, since_ns), std::memory_order_release);
  }
  // One look at each slot, from where the last search of this kind ended.
  std::optional<Claim> claim(ChunkState from, ChunkState to, Atomic<size_t>& hint) {
    const size_t begin = hint.load(std::memory_order_relaxed);
    for (size_t n = 0; n < x_size; ++n) {
      const size_t slot = begin + n < x_size ? begin + n : begin + n - x_size;
      const uint64_t word = x_words[slot].load(std::memory_order_relaxed);
      if (state_of(word) != from) continue;
      const Claim claim{slot, since_of(word)};
      if (!step(claim, from, to)) continue;
      hint.store(slot + 1 < x_size ? slot + 1 : 0, std::memory_order_relaxed);
      return claim;
    }
    return std::nullopt;
  }

  size_t x_size;
  std::unique_ptr<Atomic<uint64_t>[]> x_words;
  Atomic<size_t> x_empty_hint{0}, x_clean_hint{0}, x_dirty_hint{0};
};

}  // namespace lethe
