// For tests.
#pragma once

#include <chrono>
#include <thread>

namespace lethe {

// Whether `condition` came true within `patience`; looks each millisecond.
template <typename Condition>
bool eventually(Condition&& condition,
                std::chrono::milliseconds patience = std::chrono::milliseconds(10'000)) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace lethe
