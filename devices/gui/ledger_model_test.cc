// The ledger against a model that is too simple to be wrong: states, holders, counters and bytes
// are the same after every step, for random runs, and for all orders of few events.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <vector>

#include "devices/gui/ledger.h"

namespace lethe {
namespace {

using State = ShareLedger::State;
using Clock = ShareLedger::Clock;

constexpr uint32_t kCapacity = 6;

// Some buffers' memory the host will not take back.
bool release_refused(uint64_t bytes) { return bytes % 7 == 0; }
bool revoke_refused(uint64_t bytes) { return bytes % 5 == 0; }

class Recorder : public ShareLedger::Owner {
 public:
  Release release(BufferId id, uint64_t bytes, bool by_limit) override {
    released.emplace_back(id.generation, by_limit);
    return release_refused(bytes) ? Release::kRefused : Release::kDone;
  }
  bool revoke(BufferId id, uint64_t bytes, uint32_t holders) override {
    revoked.emplace_back(id.generation, holders);
    return !revoke_refused(bytes);
  }
  std::vector<std::pair<uint64_t, bool>> released;
  std::vector<std::pair<uint64_t, uint32_t>> revoked;
};

struct Amount {
  uint64_t buffers = 0;
  uint64_t bytes = 0;
  void add(uint64_t more) {
    ++buffers;
    bytes += more;
  }
  bool operator==(const LedgerCounters::Amount& other) const {
    return buffers == other.buffers && bytes == other.bytes;
  }
};

struct Model {
  struct Buffer {
    BufferId id;
    uint64_t bytes = 0;
    State state = State::kLive;
    uint32_t holders = 0;
    bool revoked = false;
    bool leaked = false;
    Clock::time_point since;
  };
  std::map<uint64_t, Buffer> buffers;  // by generation; all that are in use
  std::vector<uint64_t> orphans;       // the oldest first
  std::vector<uint64_t> free;          // the order of release
  Amount freed, revoked, leaked;
  uint64_t stale = 0;

  Buffer* find(BufferId id) {
    const auto found = buffers.find(id.generation);
    return found != buffers.end() && found->second.id == id ? &found->second : nullptr;
  }
  void to_free(Buffer& buffer) {
    std::erase(orphans, buffer.id.generation);
    buffer.state = State::kFree;
    free.push_back(buffer.id.generation);
  }
  void drop(Buffer& buffer, unsigned holder) {
    buffer.holders &= ~(1U << holder);
    if (buffer.holders == 0 && buffer.state == State::kOrphan) to_free(buffer);
  }
  bool hold(BufferId id, unsigned holder) {
    Buffer* const buffer = find(id);
    if (buffer == nullptr || buffer->state != State::kLive) return false;
    buffer->holders |= 1U << holder;
    return true;
  }
  bool unmapped(BufferId id, unsigned holder) {
    Buffer* const buffer = find(id);
    if (buffer == nullptr || buffer->state == State::kFree ||
        (buffer->holders >> holder & 1) == 0) {
      ++stale;
      return false;
    }
    drop(*buffer, holder);
    return true;
  }
  void holder_gone(unsigned holder) {
    std::vector<Buffer*> by_slot;
    for (auto& [generation, buffer] : buffers)
      if ((buffer.holders >> holder & 1) != 0) by_slot.push_back(&buffer);
    std::ranges::sort(by_slot, {}, [](const Buffer* b) { return b->id.slot; });
    for (Buffer* const buffer : by_slot) drop(*buffer, holder);
  }
  bool guest_gone(BufferId id, Clock::time_point now) {
    Buffer* const buffer = find(id);
    if (buffer == nullptr || buffer->state != State::kLive) return false;
    buffer->state = State::kOrphan;
    buffer->since = now;
    orphans.push_back(id.generation);
    if (buffer->holders == 0) to_free(*buffer);
    return true;
  }
  bool revoke_oldest() {
    if (orphans.empty()) return false;
    Buffer& buffer = buffers.at(orphans.front());
    buffer.revoked = true;
    buffer.leaked = revoke_refused(buffer.bytes);
    to_free(buffer);
    return true;
  }
  void enforce(const LedgerLimits& limits, Clock::time_point now) {
    const auto over = [&] {
      uint64_t bytes = 0;
      for (const uint64_t generation : orphans) bytes += buffers.at(generation).bytes;
      return bytes > limits.orphan_bytes_max || orphans.size() > limits.orphans_max ||
             now - buffers.at(orphans.front()).since >= limits.orphan_age_max;
    };
    while (!orphans.empty() && over()) (void)revoke_oldest();
  }
  bool pass(uint32_t entries_max) {
    for (uint32_t i = 0; !free.empty() && (entries_max == 0 || i < entries_max); ++i) {
      const Buffer buffer = buffers.at(free.front());
      free.erase(free.begin());
      buffers.erase(buffer.id.generation);
      const bool lost = buffer.leaked || release_refused(buffer.bytes);
      (lost ? leaked : buffer.revoked ? revoked : freed).add(buffer.bytes);
    }
    return !free.empty();
  }
  Amount in(State state) const {
    Amount amount;
    for (const auto& [generation, buffer] : buffers)
      if (buffer.state == state) amount.add(buffer.bytes);
    return amount;
  }
};

#define LEDGER_CHECK(condition)                                         \
  do {                                                                  \
    if (!(condition)) {                                                 \
      ADD_FAILURE() << #condition;                                      \
      throw std::runtime_error("ledger and model differ: " #condition); \
    }                                                                   \
  } while (false)

// Does everything to both.
struct Both {
  Recorder recorder;
  ShareLedger ledger{kCapacity, {}, recorder, std::chrono::hours(1)};
  Model model;
  std::vector<BufferId> known;  // ever given
  Clock::time_point now{std::chrono::seconds(1000)};

  std::optional<BufferId> add(uint64_t bytes) {
    const auto id = ledger.add(bytes);
    LEDGER_CHECK(id.has_value() == (model.buffers.size() < kCapacity));
    if (!id) return id;
    for (const BufferId other : known) LEDGER_CHECK(other.generation != id->generation);
    for (const auto& [generation, buffer] : model.buffers) LEDGER_CHECK(buffer.id.slot != id->slot);
    model.buffers[id->generation] = {.id = *id, .bytes = bytes, .since = {}};
    known.push_back(*id);
    return id;
  }
  void hold(BufferId id, unsigned holder) {
    LEDGER_CHECK(ledger.hold(id, holder) == model.hold(id, holder));
  }
  void unmapped(BufferId id, unsigned holder) {
    LEDGER_CHECK(ledger.unmapped(id, holder) == model.unmapped(id, holder));
  }
  void holder_gone(unsigned holder) {
    ledger.holder_gone(holder);
    model.holder_gone(holder);
  }
  void guest_gone(BufferId id) {
    LEDGER_CHECK(ledger.guest_gone(id, now) == model.guest_gone(id, now));
  }
  void revoke_oldest() { LEDGER_CHECK(ledger.revoke_oldest() == model.revoke_oldest()); }
  void enforce(const LedgerLimits& limits) {
    ledger.set_limits(limits);
    const auto next = ledger.enforce_limits(now);
    model.enforce(limits, now);
    LEDGER_CHECK(next.has_value() == !model.orphans.empty());
    if (next)
      LEDGER_CHECK(*next == model.buffers.at(model.orphans.front()).since + limits.orphan_age_max);
  }
  void pass(uint32_t entries_max) {
    const std::vector<uint64_t> order = model.free;
    const size_t before = recorder.released.size();
    ledger.set_free_per_iteration(entries_max);
    LEDGER_CHECK(ledger.run_pass() == model.pass(entries_max));
    const size_t count = recorder.released.size() - before;
    LEDGER_CHECK(count == order.size() - model.free.size());
    for (size_t i = 0; i < count; ++i)
      LEDGER_CHECK(recorder.released[before + i].first == order[i]);
  }
  void check() {
    for (const BufferId id : known) {
      const Model::Buffer* const buffer = model.find(id);
      LEDGER_CHECK(ledger.state(id) == (buffer == nullptr ? State::kUnused : buffer->state));
      LEDGER_CHECK(ledger.holders(id) == (buffer == nullptr ? 0 : buffer->holders));
    }
    const LedgerCounters& counters = ledger.counters();
    LEDGER_CHECK(model.in(State::kLive) == counters.live);
    LEDGER_CHECK(model.in(State::kOrphan) == counters.orphan);
    LEDGER_CHECK(model.in(State::kFree) == counters.freeing);
    LEDGER_CHECK(model.freed == counters.freed);
    LEDGER_CHECK(model.revoked == counters.revoked);
    LEDGER_CHECK(model.leaked == counters.leaked);
    LEDGER_CHECK(model.stale == counters.stale);
  }
};

RC_GTEST_PROP(LedgerModelTest, is_the_model_after_every_step, ()) {
  Both both;
  // Of the whole range from the first case on, not of what rapidcheck thinks small.
  const auto number = [](uint32_t end) {
    return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<uint32_t>(0, end));
  };
  const uint32_t steps = 1 + number(400);
  for (uint32_t i = 0; i < steps; ++i) {
    // Mostly one that was given lately, sometimes one of long ago, sometimes none that ever was.
    const auto some = [&]() -> BufferId {
      if (both.known.empty() || number(30) == 0) return {number(kCapacity + 2), number(50)};
      const auto recent = std::min<uint32_t>(static_cast<uint32_t>(both.known.size()),
                                             number(4) == 0 ? 100 : kCapacity);
      return both.known[both.known.size() - 1 - number(recent)];
    };
    both.now += std::chrono::milliseconds(number(50));
    switch (number(9)) {
      case 0:
      case 1:
        (void)both.add(1 + number(50));
        break;
      case 2:
        both.hold(some(), number(3));
        break;
      case 3:
        both.unmapped(some(), number(3));
        break;
      case 4:
        both.holder_gone(number(3));
        break;
      case 5:
        both.guest_gone(some());
        break;
      case 6:
        both.revoke_oldest();
        break;
      case 7:
        both.enforce({.orphan_bytes_max = number(150),
                      .orphans_max = number(kCapacity),
                      .orphan_age_max = std::chrono::milliseconds(number(300))});
        break;
      case 8:
        both.pass(number(3));
        break;
      default:
        break;
    }
    both.check();
  }
}

// All orders of: the guest's end, both holders' answers, the end of a holder's process, revocation,
// a pass, the slot's next use with holders of its own, and a stale answer by each. 10! orders are
// too many for a quick test: the ten are dealt with by two sets of eight.
void try_all_orders(std::vector<int> events) {
  std::ranges::sort(events);
  size_t orders = 0;
  do {
    Both both;
    const BufferId first = both.add(4096).value();
    for (uint32_t i = 1; i < kCapacity; ++i) (void)both.add(3);  // so that slots are used again
    both.hold(first, 0);
    both.hold(first, 1);
    for (const int event : events) {
      switch (event) {
        case 0:
          both.guest_gone(first);
          break;
        case 1:
          both.unmapped(first, 0);
          break;
        case 2:
          both.unmapped(first, 1);
          break;
        case 3:
          both.holder_gone(0);
          break;
        case 4:
          both.revoke_oldest();
          break;
        case 5:
          both.pass(0);
          break;
        case 6:
          if (const auto next = both.add(8192)) {
            both.hold(*next, 0);
            both.hold(*next, 1);
          }
          break;
        case 7:
          both.holder_gone(1);
          break;
        case 8:
          both.guest_gone(both.known.back());
          break;
        case 9:
          both.pass(1);
          break;
        default:
          break;
      }
      both.check();
    }
    ++orders;
  } while (std::ranges::next_permutation(events).found);
  EXPECT_GE(orders, 40'320U / 2);
}

TEST(LedgerModelTest, all_orders_of_answers_revocation_and_reuse) {
  try_all_orders({0, 1, 2, 3, 4, 5, 6, 1});
}

TEST(LedgerModelTest, all_orders_of_ends_of_processes_and_reuse) {
  try_all_orders({0, 2, 3, 7, 4, 5, 6, 8});
}

TEST(LedgerModelTest, all_orders_of_two_passes_and_late_answers) {
  try_all_orders({0, 1, 2, 4, 5, 6, 8, 9});
}

}  // namespace
}  // namespace lethe
