// A set of slot numbers below a bound: a bit each, all memory at construction, no order of arrival.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <vector>

namespace lethe {

class SlotSet {
 public:
  explicit SlotSet(uint32_t slots) : x_words((slots + 63) / 64) {}

  void add(uint32_t slot) {
    uint64_t& word = x_words[slot / 64];
    x_size += (word & bit(slot)) == 0 ? 1 : 0;
    word |= bit(slot);
  }
  void remove(uint32_t slot) {
    uint64_t& word = x_words[slot / 64];
    x_size -= (word & bit(slot)) != 0 ? 1 : 0;
    word &= ~bit(slot);
  }
  [[nodiscard]] bool contains(uint32_t slot) const { return (x_words[slot / 64] & bit(slot)) != 0; }
  [[nodiscard]] bool empty() const { return x_size == 0; }
  // The smallest member that is not below `from`.
  [[nodiscard]] std::optional<uint32_t> next(uint32_t from = 0) const {
    if (x_size == 0) return std::nullopt;
    for (size_t i = from / 64; i < x_words.size(); ++i) {
      const uint64_t word = i == from / 64 ? x_words[i] & ~uint64_t{0} << from % 64 : x_words[i];
      if (word != 0) return static_cast<uint32_t>(i * 64) + std::countr_zero(word);
    }
    return std::nullopt;
  }

 private:
  static uint64_t bit(uint32_t slot) { return uint64_t{1} << slot % 64; }
  std::vector<uint64_t> x_words;
  uint32_t x_size = 0;
};

}  // namespace lethe
