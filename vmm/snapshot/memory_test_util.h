// What the tests of a snapshot's memory share: 4 MiB of guest memory, and a file.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>

#include "memory/guest_memory.h"

namespace lethe {

inline constexpr uint64_t kTestPages = 1024;

inline std::unique_ptr<GuestMemory> test_memory(MemoryBacking backing = MemoryBacking::kAnonymous) {
  // Two regions, as a guest with more than 3 GiB has.
  const std::array<GuestMemory::Range, 2> ranges{
      GuestMemory::Range{GuestAddr{0}, kTestPages / 2 * kPageBytes},
      GuestMemory::Range{GuestAddr{4 * kGiB}, kTestPages / 2 * kPageBytes}};
  return std::move(*GuestMemory::create(ranges, {.backing = backing, .thp = false}));
}

// Numbered as in the file.
inline uint8_t* page_of(const GuestMemory& memory, uint64_t page) {
  const auto regions = memory.regions();
  const uint64_t in_first = regions[0].size / kPageBytes;
  return page < in_first ? regions[0].host + page * kPageBytes
                         : regions[1].host + (page - in_first) * kPageBytes;
}

inline void fill_page(const GuestMemory& memory, uint64_t page, uint64_t seed) {
  auto* const words = reinterpret_cast<uint64_t*>(page_of(memory, page));
  for (uint64_t i = 0; i < kPageBytes / sizeof seed; ++i)
    words[i] = seed * 0x9E37'79B9'7F4A'7C15 + i;
}

inline void touch_page(const GuestMemory& memory, uint64_t page) {
  *static_cast<volatile uint8_t*>(page_of(memory, page)) = 0;
}

// On a file system that keeps holes; without a name.
inline UniqueFd test_file() {
  char path[] = "/tmp/lethe-memory-XXXXXX";
  UniqueFd fd(::mkostemp(path, O_CLOEXEC));
  EXPECT_TRUE(fd.valid());
  ::unlink(path);
  return fd;
}

}  // namespace lethe
