// The share ledger: every buffer that guest and frontends share is tracked until both have let it
// go, in whatever order.
//
//            add                guest_gone, held               last holder gone, or revoked
//   (free) ------> LIVE -------------------------> ORPHAN -----------------------------> FREE
//                    \----------- guest_gone, not held ------------------------------->  |
//                                                              run_pass(): Owner::release |
//   (free) <-----------------------------------------------------------------------------/
//
// An entry is a slot and a generation: slots are used again, generations never, so a late answer
// for an old buffer finds nothing (counted as stale). A frontend is a bit in each entry's set of
// holders. Everything is allocated at construction; nothing is ever dropped for want of memory.
//
// The problem it solves, and the scheme it replaces (a list walked 10 entries a second): Xen's
// deferred grant reclaim, see docs/gui.md.
//
// Threading: one thread (the gui thread); counters() from any.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

namespace lethe {

struct BufferId {
  uint32_t slot = 0xFFFF'FFFF;
  uint64_t generation = 0;  // 0: none
  [[nodiscard]] bool valid() const { return generation != 0; }
  bool operator==(const BufferId&) const = default;
};

struct LedgerLimits {
  uint64_t orphan_bytes_max = 256u << 20;
  uint32_t orphans_max = 4096;
  std::chrono::nanoseconds orphan_age_max = std::chrono::seconds(10);
};

struct LedgerCounters {  // "now" unless total
  struct Amount {
    std::atomic<uint64_t> buffers{0};
    std::atomic<uint64_t> bytes{0};
  };
  Amount live;
  Amount orphan;
  Amount freeing;                  // FREE, not yet released
  Amount freed;                    // total released after both sides let go
  Amount revoked;                  // total released by a limit
  Amount leaked;                   // total that could not be released: the host refused
  std::atomic<uint64_t> stale{0};  // total answers for what is not held, or no longer there
  std::atomic<uint64_t> passes{0};
  std::atomic<uint64_t> pass_ns_max{0};
};

class ShareLedger {
 public:
  static constexpr unsigned kHoldersMax = 16;
  using Clock = std::chrono::steady_clock;

  enum class State : uint8_t { kUnused, kLive, kOrphan, kFree };

  // Who really frees, and is told. Calls come from run_pass() and enforce_limits(); they may not
  // call the ledger.
  class Owner {
   public:
    virtual ~Owner() = default;
    // The entry is FREE: give its memory back, or a part of it (kMore: it is called again), so that
    // one large buffer does not hold up the loop. What the host refuses is counted as leaked.
    enum class Release : uint8_t { kDone, kMore, kRefused };
    virtual Release release(BufferId id, uint64_t bytes, bool revoked) = 0;
    // Take the memory of an ORPHAN away, although `holders` (bits) still map it; release() follows,
    // and does what this leaves.
    virtual bool revoke(BufferId id, uint64_t bytes, uint32_t holders) = 0;
  };

  // `capacity`: entries at one time, 1 to 2^24. `pass_max` bounds a pass in time, whatever
  // free_per_iteration says.
  ShareLedger(uint32_t capacity, const LedgerLimits& limits, Owner& owner,
              std::chrono::nanoseconds pass_max = std::chrono::milliseconds(5));
  ~ShareLedger();

  // A buffer of the guest's: LIVE. Nothing if all entries are in use.
  [[nodiscard]] std::optional<BufferId> add(uint64_t bytes);
  // The frontend `holder` gets it. False if it is not LIVE.
  bool hold(BufferId id, unsigned holder);
  // The frontend's UNMAPPED. False (stale): it does not hold it, or it is not there any more.
  bool unmapped(BufferId id, unsigned holder);
  // The process of the frontend is gone, and every mapping with it. Looks at every entry.
  void holder_gone(unsigned holder);
  // The guest let it go: unref, or reset. False if it is not LIVE.
  bool guest_gone(BufferId id, Clock::time_point now);

  // Releases FREE entries: at most free_per_iteration of them and for about pass_max. True if more
  // are left: call again, after other work had its turn.
  bool run_pass();
  // Revokes the oldest orphans until limits hold, for about pass_max; what it revoked is FREE then.
  // When it has to be called again, if there are orphans: for age, or at once (`now`).
  std::optional<Clock::time_point> enforce_limits(Clock::time_point now);

  // Revokes the oldest orphan, whatever the limits say. False if there is none.
  bool revoke_oldest();

  // 0: no limit but time. Takes effect with the next pass. Any thread.
  void set_free_per_iteration(uint32_t entries) {
    x_free_per_iteration.store(entries, std::memory_order_relaxed);
  }
  [[nodiscard]] uint32_t free_per_iteration() const {
    return x_free_per_iteration.load(std::memory_order_relaxed);
  }
  void set_limits(const LedgerLimits& limits) { x_limits = limits; }
  [[nodiscard]] const LedgerLimits& limits() const { return x_limits; }

  [[nodiscard]] State state(BufferId id) const;  // kUnused for what is not there
  [[nodiscard]] uint32_t holders(BufferId id) const;
  [[nodiscard]] const LedgerCounters& counters() const { return x_counters; }

 private:
  static constexpr uint32_t kNone = 0xFFFF'FFFF;
  struct Entry;
  struct List {  // of slots, by their links
    uint32_t first = kNone;
    uint32_t last = kNone;
  };

  [[nodiscard]] Entry* find(BufferId id);
  [[nodiscard]] const Entry* find(BufferId id) const;
  void append(List& list, uint32_t slot);
  void unlink(List& list, uint32_t slot);
  void drop_holder(uint32_t slot, uint16_t bit);
  void orphan_to_free(uint32_t slot);
  bool release_first();  // false: there is more of it
  [[nodiscard]] bool over_limits(Clock::time_point now) const;

  const uint32_t x_capacity;
  const std::unique_ptr<Entry[]> x_entries;
  Owner& x_owner;
  const std::chrono::nanoseconds x_pass_max;
  uint64_t x_generation = 0;  // the last one given
  uint32_t x_used = 0;        // slots from here on were never used
  List x_unused;
  List x_orphans;  // the oldest first
  List x_free;
  LedgerLimits x_limits;
  std::atomic<uint32_t> x_free_per_iteration{10'000};
  LedgerCounters x_counters;
};

}  // namespace lethe
