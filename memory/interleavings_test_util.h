// For tests: runs a few small actors over all interleavings of their steps. A step is one operation
// on a ModelAtomic, so the code under test takes its atomics as a template parameter.
//
// There are no threads. To let an actor take one more step, its function is called from the start
// again: the operations it has done already return what they returned then, one is done for real,
// and the next one leaves the function by an exception. So an actor's function must be
// deterministic, and what it does outside ModelAtomics must bear repeating. Sequentially consistent
// interleavings only: TSan looks after memory orders, in the tests with real threads.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>
#include <unordered_set>
#include <vector>

namespace lethe {

class Interleavings {
 public:
  struct Actor {
    std::function<void()> run;
    // Called once it has ended, with everything as it is at that moment.
    std::function<void()> ended = [] {};
  };

  // The explorer that ModelAtomics made or used now belong to.
  static Interleavings*& current() {
    static Interleavings* explorer = nullptr;
    return explorer;
  }
  Interleavings() { current() = this; }
  ~Interleavings() { current() = nullptr; }
  Interleavings(const Interleavings&) = delete;
  Interleavings& operator=(const Interleavings&) = delete;

  // Calls `at_end` in each final state. Returns how many different states there were, and stops at
  // the first failed expectation.
  size_t explore(std::vector<Actor> actors, std::function<void()> at_end) {
    x_actors = std::move(actors);
    x_at_end = std::move(at_end);
    x_logs.assign(x_actors.size(), {});
    x_done.assign(x_actors.size(), false);
    x_seen.clear();
    visit();
    return x_seen.size();
  }
  // The most steps any actor took in any interleaving.
  [[nodiscard]] size_t steps_max() const { return x_steps_max; }

  // Looks without taking a step: for `ended` and `at_end`.
  [[nodiscard]] uint64_t peek(size_t cell) const { return x_cells[cell]; }

  // For ModelAtomic.
  size_t add_cell(uint64_t value) {
    x_cells.push_back(value);
    return x_cells.size() - 1;
  }
  // Does `operation`, which returns what the caller is to see, or repeats what it saw.
  template <typename Operation>
  uint64_t step(Operation operation) {
    if (x_log == nullptr) return operation();  // set-up: nobody explores yet
    if (x_position < x_log->size()) return (*x_log)[x_position++];
    if (x_stepped) throw Stop();
    x_stepped = true;
    x_log->push_back(operation());
    ++x_position;
    return x_log->back();
  }
  [[nodiscard]] uint64_t& cell(size_t index) { return x_cells[index]; }

 private:
  struct Stop {};

  [[nodiscard]] std::string key() const {
    std::string result;
    const auto append = [&](const std::vector<uint64_t>& words) {
      const uint64_t count = words.size();
      // SAFETY: integers, read as bytes.
      result.append(reinterpret_cast<const char*>(&count), sizeof count);
      result.append(reinterpret_cast<const char*>(words.data()), count * sizeof(uint64_t));
    };
    append(x_cells);
    for (const auto& log : x_logs) append(log);
    for (const bool done : x_done) result.push_back(done ? 1 : 0);
    return result;
  }

  void visit() {
    if (::testing::Test::HasFailure() || !x_seen.insert(key()).second) return;
    bool all_done = true;
    for (size_t i = 0; i < x_actors.size(); ++i) {
      if (x_done[i]) continue;
      all_done = false;
      const auto cells = x_cells;
      const auto log = x_logs[i];
      take_step(i);
      visit();
      x_cells = cells;
      x_logs[i] = log;
      x_done[i] = false;
    }
    if (all_done) x_at_end();
  }

  void take_step(size_t actor) {
    x_log = &x_logs[actor];
    x_position = 0;
    x_stepped = false;
    try {
      x_actors[actor].run();
      x_done[actor] = true;
    } catch (const Stop&) {
    }
    x_log = nullptr;
    x_steps_max = std::max(x_steps_max, x_logs[actor].size());
    if (x_done[actor]) x_actors[actor].ended();
  }

  std::vector<Actor> x_actors;
  std::function<void()> x_at_end;
  std::vector<uint64_t> x_cells;
  std::vector<std::vector<uint64_t>> x_logs;  // of each actor: what its operations returned
  std::vector<bool> x_done;
  std::unordered_set<std::string> x_seen;
  size_t x_steps_max = 0;
  std::vector<uint64_t>* x_log = nullptr;  // of the actor that runs
  size_t x_position = 0;
  bool x_stepped = false;
};

template <typename T>
class ModelAtomic {
 public:
  ModelAtomic(T value = {})  // NOLINT: as std::atomic
      : x_cell(Interleavings::current()->add_cell(static_cast<uint64_t>(value))) {}
  ModelAtomic(const ModelAtomic&) = delete;
  ModelAtomic& operator=(const ModelAtomic&) = delete;

  T load(std::memory_order = std::memory_order_seq_cst) const {
    return static_cast<T>(explorer().step([&] { return explorer().cell(x_cell); }));
  }
  void store(T value, std::memory_order = std::memory_order_seq_cst) {
    explorer().step([&] { return explorer().cell(x_cell) = static_cast<uint64_t>(value); });
  }
  bool compare_exchange_strong(T& expected, T desired, std::memory_order, std::memory_order) {
    const auto wanted = static_cast<uint64_t>(expected);
    const uint64_t old = explorer().step([&] {
      uint64_t& cell = explorer().cell(x_cell);
      const uint64_t before = cell;
      if (before == wanted) cell = static_cast<uint64_t>(desired);
      return before;
    });
    expected = static_cast<T>(old);
    return old == wanted;
  }
  [[nodiscard]] T peek() const { return static_cast<T>(explorer().peek(x_cell)); }

 private:
  static Interleavings& explorer() { return *Interleavings::current(); }
  size_t x_cell;
};

}  // namespace lethe
