// For fuzzers: the input, taken piece by piece.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace lethe {

class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : x_data(data), x_left(size) {}
  // Zeroes where the input has ended.
  template <typename T>
  T take() {
    T value{};
    (void)take(&value, std::min(sizeof value, x_left));
    return value;
  }
  // False, with nothing taken, if so much is not left.
  bool take(void* to, size_t size) {
    if (size > x_left) return false;
    std::memcpy(to, x_data, size);
    x_data += size;
    x_left -= size;
    return true;
  }
  [[nodiscard]] bool empty() const { return x_left == 0; }
  [[nodiscard]] size_t left() const { return x_left; }
  [[nodiscard]] const uint8_t* data() const { return x_data; }

 private:
  const uint8_t* x_data;
  size_t x_left;
};

}  // namespace lethe
