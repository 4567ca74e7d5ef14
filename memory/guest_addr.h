// GuestAddr: a guest physical address, in bytes. A type of its own, so that it is never mistaken
// for a host pointer or a length.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>

namespace lethe {

struct GuestAddr {
  uint64_t value = 0;
  friend constexpr auto operator<=>(GuestAddr, GuestAddr) = default;

  // The address `offset` bytes further; nothing when it would pass 2^64.
  [[nodiscard]] constexpr std::optional<GuestAddr> plus(uint64_t offset) const {
    if (offset > UINT64_MAX - value) return std::nullopt;
    return GuestAddr{value + offset};
  }
};

}  // namespace lethe
