#include "devices/gui/ledger.h"

#include <bit>
#include <utility>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr uint32_t kCapacityMax = 1u << 24;
// How often a pass looks at the clock.
constexpr uint32_t kEntriesALook = 8;
constexpr uint64_t kBytesALook = 1u << 20;

// There is one writer: no need for an atomic addition.
void count(std::atomic<uint64_t>& counter, uint64_t amount) {
  counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}
void enter(LedgerCounters::Amount& amount, uint64_t bytes) {
  count(amount.buffers, 1);
  count(amount.bytes, bytes);
}
void leave(LedgerCounters::Amount& amount, uint64_t bytes) {
  count(amount.buffers, ~uint64_t{0});  // -1, modulo 2^64
  count(amount.bytes, ~bytes + 1);
}

}  // namespace

struct ShareLedger::Entry {
  uint64_t generation = 0;
  uint64_t bytes = 0;
  Clock::time_point orphaned_at;
  uint32_t previous = kNone;
  uint32_t next = kNone;
  uint16_t holders = 0;
  State state = State::kUnused;
  bool revoked = false;
  bool leaked = false;
};

ShareLedger::ShareLedger(uint32_t capacity, const LedgerLimits& limits, Owner& owner,
                         std::chrono::nanoseconds pass_max)
    : x_capacity(capacity),
      x_entries(std::make_unique<Entry[]>(capacity)),
      x_owner(owner),
      x_pass_max(pass_max),
      x_limits(limits) {
  LETHE_ASSERT(capacity > 0 && capacity <= kCapacityMax);
}

ShareLedger::~ShareLedger() = default;

ShareLedger::Entry* ShareLedger::find(BufferId id) {
  // SAFETY: it finds one of x_entries, which are not const.
  return const_cast<Entry*>(std::as_const(*this).find(id));
}

const ShareLedger::Entry* ShareLedger::find(BufferId id) const {
  if (id.slot >= x_capacity || !id.valid()) return nullptr;
  const Entry& entry = x_entries[id.slot];
  return entry.generation == id.generation && entry.state != State::kUnused ? &entry : nullptr;
}

void ShareLedger::append(List& list, uint32_t slot) {
  x_entries[slot].previous = list.last;
  x_entries[slot].next = kNone;
  (list.last == kNone ? list.first : x_entries[list.last].next) = slot;
  list.last = slot;
}

void ShareLedger::unlink(List& list, uint32_t slot) {
  const Entry& entry = x_entries[slot];
  (entry.previous == kNone ? list.first : x_entries[entry.previous].next) = entry.next;
  (entry.next == kNone ? list.last : x_entries[entry.next].previous) = entry.previous;
}

std::optional<BufferId> ShareLedger::add(uint64_t bytes) {
  uint32_t slot = x_unused.first;
  if (slot != kNone) {
    unlink(x_unused, slot);
  } else {
    if (x_used == x_capacity) return std::nullopt;
    slot = x_used++;
  }
  Entry& entry = x_entries[slot];
  entry = {};
  entry.generation = ++x_generation;
  entry.bytes = bytes;
  entry.state = State::kLive;
  enter(x_counters.live, bytes);
  return BufferId{slot, x_generation};
}

bool ShareLedger::hold(BufferId id, unsigned holder) {
  LETHE_ASSERT(holder < kHoldersMax);
  Entry* const entry = find(id);
  if (entry == nullptr || entry->state != State::kLive) return false;
  entry->holders = static_cast<uint16_t>(entry->holders | 1u << holder);
  return true;
}

void ShareLedger::drop_holder(uint32_t slot, uint16_t bit) {
  Entry& entry = x_entries[slot];
  entry.holders = static_cast<uint16_t>(entry.holders & ~bit);
  if (entry.holders == 0 && entry.state == State::kOrphan) orphan_to_free(slot);
}

void ShareLedger::orphan_to_free(uint32_t slot) {
  Entry& entry = x_entries[slot];
  unlink(x_orphans, slot);
  leave(x_counters.orphan, entry.bytes);
  entry.state = State::kFree;
  enter(x_counters.freeing, entry.bytes);
  append(x_free, slot);
}

bool ShareLedger::unmapped(BufferId id, unsigned holder) {
  LETHE_ASSERT(holder < kHoldersMax);
  const auto bit = static_cast<uint16_t>(1u << holder);
  const Entry* const entry = find(id);
  // What was revoked is FREE with its holders: an answer for it comes too late.
  if (entry == nullptr || entry->state == State::kFree || (entry->holders & bit) == 0) {
    count(x_counters.stale, 1);
    return false;
  }
  drop_holder(id.slot, bit);
  return true;
}

void ShareLedger::holder_gone(unsigned holder) {
  LETHE_ASSERT(holder < kHoldersMax);
  const auto bit = static_cast<uint16_t>(1u << holder);
  for (uint32_t slot = 0; slot < x_used; ++slot)
    if ((x_entries[slot].holders & bit) != 0) drop_holder(slot, bit);
}

bool ShareLedger::guest_gone(BufferId id, Clock::time_point now) {
  Entry* const entry = find(id);
  if (entry == nullptr || entry->state != State::kLive) return false;
  leave(x_counters.live, entry->bytes);
  entry->state = State::kOrphan;
  entry->orphaned_at = now;
  enter(x_counters.orphan, entry->bytes);
  append(x_orphans, id.slot);
  if (entry->holders == 0) orphan_to_free(id.slot);
  return true;
}

bool ShareLedger::revoke_oldest() {
  const uint32_t slot = x_orphans.first;
  if (slot == kNone) return false;
  Entry& entry = x_entries[slot];
  entry.revoked = true;
  entry.leaked = !x_owner.revoke({slot, entry.generation}, entry.bytes, entry.holders);
  orphan_to_free(slot);
  return true;
}

bool ShareLedger::release_first() {
  const uint32_t slot = x_free.first;
  Entry& entry = x_entries[slot];
  const uint64_t bytes = entry.bytes;
  const auto released = x_owner.release({slot, entry.generation}, bytes, entry.revoked);
  if (released == Owner::Release::kMore) return false;
  leave(x_counters.freeing, bytes);
  if (released == Owner::Release::kRefused || entry.leaked) {
    enter(x_counters.leaked, bytes);
  } else {
    enter(entry.revoked ? x_counters.revoked : x_counters.freed, bytes);
  }
  unlink(x_free, slot);
  entry.state = State::kUnused;
  append(x_unused, slot);
  return true;
}

bool ShareLedger::run_pass() {
  if (x_free.first == kNone) return false;
  const uint32_t entries_max = free_per_iteration();
  const auto begin = Clock::now();
  auto now = begin;
  uint64_t bytes = 0;
  for (uint32_t entries = 0;;) {
    bytes += x_entries[x_free.first].bytes;
    entries += release_first() ? 1 : 0;
    if (x_free.first == kNone || (entries_max != 0 && entries == entries_max)) break;
    if (entries % kEntriesALook != 0 && bytes < kBytesALook) continue;
    bytes = 0;
    now = Clock::now();
    if (now - begin >= x_pass_max) break;
  }
  const auto ns = static_cast<uint64_t>(std::chrono::nanoseconds(Clock::now() - begin).count());
  count(x_counters.passes, 1);
  if (ns > x_counters.pass_ns_max.load(std::memory_order_relaxed))
    x_counters.pass_ns_max.store(ns, std::memory_order_relaxed);
  return x_free.first != kNone;
}

bool ShareLedger::over_limits(Clock::time_point now) const {
  return x_counters.orphan.bytes.load(std::memory_order_relaxed) > x_limits.orphan_bytes_max ||
         x_counters.orphan.buffers.load(std::memory_order_relaxed) > x_limits.orphans_max ||
         now - x_entries[x_orphans.first].orphaned_at >= x_limits.orphan_age_max;
}

std::optional<ShareLedger::Clock::time_point> ShareLedger::enforce_limits(Clock::time_point now) {
  if (x_orphans.first == kNone) return std::nullopt;
  if (over_limits(now)) {
    const auto begin = Clock::now();
    do {
      (void)revoke_oldest();
      if (x_orphans.first == kNone) return std::nullopt;
    } while (over_limits(now) && Clock::now() - begin < x_pass_max);
    if (over_limits(now)) return now;
  }
  const Clock::time_point oldest = x_entries[x_orphans.first].orphaned_at;
  const bool never = x_limits.orphan_age_max >= Clock::time_point::max() - oldest;
  return never ? Clock::time_point::max() : oldest + x_limits.orphan_age_max;
}

ShareLedger::State ShareLedger::state(BufferId id) const {
  const Entry* const entry = find(id);
  return entry == nullptr ? State::kUnused : entry->state;
}

uint32_t ShareLedger::holders(BufferId id) const {
  const Entry* const entry = find(id);
  return entry == nullptr ? 0 : entry->holders;
}

}  // namespace lethe
