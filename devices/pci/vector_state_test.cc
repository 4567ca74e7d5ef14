#include "devices/pci/vector_state.h"

#include <gtest/gtest.h>

#include <functional>
#include <utility>

namespace lethe {
namespace {

// An atomic byte that lets the other thread run, whole, before one chosen access: so each place
// where one operation can fall into another is tried, without threads and without luck.
class InterruptedByte {
 public:
  InterruptedByte(uint8_t value) : x_value(value) {}  // implicit, as std::atomic's
  uint8_t load(std::memory_order) const {
    meet();
    return x_value;
  }
  void store(uint8_t value, std::memory_order) {
    meet();
    x_value = value;
  }
  uint8_t exchange(uint8_t value, std::memory_order) {
    meet();
    return std::exchange(x_value, value);
  }
  uint8_t fetch_or(uint8_t bits, std::memory_order) {
    meet();
    return std::exchange(x_value, static_cast<uint8_t>(x_value | bits));
  }
  uint8_t fetch_and(uint8_t bits, std::memory_order) {
    meet();
    return std::exchange(x_value, static_cast<uint8_t>(x_value & bits));
  }
  bool compare_exchange_weak(uint8_t& expected, int value, std::memory_order, std::memory_order) {
    meet();
    if (x_value != expected) {
      expected = x_value;
      return false;
    }
    x_value = static_cast<uint8_t>(value);
    return true;
  }

  static inline int countdown = -1;  // accesses until `other` runs; negative: it does not
  static inline std::function<void()> other;

 private:
  static void meet() {
    if (countdown >= 0 && countdown-- == 0) other();
  }
  uint8_t x_value;
};

struct Vector {
  void signal() { delivered += state.signal() ? 1 : 0; }
  void open() { delivered += state.open() ? 1 : 0; }
  void mask() { state.mask(); }
  VectorState<InterruptedByte> state;
  int delivered = 0;
};

using Act = void (*)(Vector&);

// Runs `one`, with `other` falling in before its every access in turn, and at its end; `check` each
// time. Starts masked or open.
void meet_everywhere(bool starts_open, Act one, Act other,
                     const std::function<void(Vector&)>& check) {
  for (int at = 0;; ++at) {
    SCOPED_TRACE(testing::Message() << "starts open: " << starts_open << ", before access " << at);
    Vector vector;
    if (starts_open)
      vector.open();
    else
      vector.mask();
    bool met = false;
    InterruptedByte::other = [&] {
      met = true;
      other(vector);
    };
    InterruptedByte::countdown = at;
    one(vector);
    InterruptedByte::countdown = -1;
    if (!met) other(vector);
    check(vector);
    if (!met) return;
  }
}

constexpr Act kSignal = [](Vector& vector) { vector.signal(); };
constexpr Act kOpen = [](Vector& vector) { vector.open(); };
constexpr Act kMask = [](Vector& vector) { vector.mask(); };
constexpr Act kMaskAndOpen = [](Vector& vector) {
  vector.mask();
  vector.open();
};
constexpr Act kOpenAndMask = [](Vector& vector) {
  vector.open();
  vector.mask();
};

// However a signal and a vCPU's writes meet, the one signal arrives once: at once, or when the
// vector is opened next.
TEST(VectorState, one_signal_arrives_exactly_once_wherever_it_meets_a_mask) {
  for (const bool starts_open : {false, true}) {
    for (const Act vcpu : {kOpen, kMask, kMaskAndOpen, kOpenAndMask}) {
      const auto arrives_once = [](Vector& vector) {
        EXPECT_EQ(vector.delivered + (vector.state.pending() ? 1 : 0), 1);
        vector.open();
        EXPECT_EQ(vector.delivered, 1);
        EXPECT_FALSE(vector.state.pending());
      };
      meet_everywhere(starts_open, kSignal, vcpu, arrives_once);
      meet_everywhere(starts_open, vcpu, kSignal, arrives_once);
    }
  }
}

TEST(VectorState, an_open_vector_holds_nothing_back) {
  for (const Act vcpu : {kOpen, kMaskAndOpen}) {
    const auto nothing_pending = [](Vector& vector) {
      EXPECT_EQ(vector.delivered, 1);
      EXPECT_FALSE(vector.state.pending());
    };
    meet_everywhere(false, kSignal, vcpu, nothing_pending);
    meet_everywhere(false, vcpu, kSignal, nothing_pending);
  }
}

TEST(VectorState, signals_while_masked_are_one) {
  Vector vector;
  vector.mask();
  vector.signal();
  vector.signal();
  EXPECT_EQ(vector.delivered, 0);
  vector.open();
  vector.open();
  EXPECT_EQ(vector.delivered, 1);
}

TEST(VectorState, nothing_arrives_while_msix_is_off) {
  Vector vector;
  vector.signal();
  vector.open();
  vector.mask();
  vector.signal();
  vector.state.disable();
  EXPECT_FALSE(vector.state.pending());
  vector.open();
  EXPECT_EQ(vector.delivered, 0);
}

}  // namespace
}  // namespace lethe
