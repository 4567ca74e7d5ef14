// For tests of returned memory: guest memory with known content, and whether it is still there.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "memory/guest_memory.h"
#include "memory/return_pipeline.h"

namespace lethe {

// Pretends that the host refuses.
class FailingOps : public MemoryOps {
 public:
  int advise(uint8_t* host, uint64_t size, int advice) override {
    if (advice == MADV_DONTNEED) alone.push_back({host, size});
    return try_advice(host, size, advice);
  }
  // Like a kernel that does it, whatever this one does: up to the first range that fails, of which
  // half may be gone.
  size_t advise_all(std::span<const iovec> ranges, int advice) override {
    if (before_all) before_all(ranges);
    together.push_back(ranges.size());
    size_t done = 0;
    for (; done < std::min(ranges.size(), together_max); ++done) {
      auto* const host = static_cast<uint8_t*>(ranges[done].iov_base);
      if (try_advice(host, ranges[done].iov_len, advice) == 0) continue;
      (void)MemoryOps::advise(host, ranges[done].iov_len / 2 / kPageBytes * kPageBytes, advice);
      break;
    }
    return done;
  }
  int punch_hole(int fd, uint64_t offset, uint64_t size) override {
    return fail_punch ? EIO : MemoryOps::punch_hole(fd, offset, size);
  }
  int resident(const uint8_t* host, std::span<uint8_t> pages) override {
    return fail_resident ? EIO : MemoryOps::resident(host, pages);
  }
  std::optional<uint64_t> mapped(const uint8_t* host, uint64_t size) override {
    return fail_resident || no_mapped ? std::nullopt : MemoryOps::mapped(host, size);
  }
  std::set<int> fail_advice;
  std::set<const uint8_t*> fail_at;       // MADV_DONTNEED of a range that holds one of these
  size_t together_max = SIZE_MAX;         // of the ranges of a call; 0: as before Linux 6.13
  std::vector<size_t> together;           // how many ranges each call for several had
  std::vector<std::span<uint8_t>> alone;  // ranges discarded by a call each
  std::function<void(std::span<const iovec>)> before_all;
  bool fail_punch = false;
  bool fail_resident = false;
  bool no_mapped = false;  // as before Linux 6.7

 private:
  int try_advice(uint8_t* host, uint64_t size, int advice) {
    const auto bad = fail_at.lower_bound(host);
    const bool holds_bad = bad != fail_at.end() && *bad < host + size;
    if (fail_advice.contains(advice) || (advice == MADV_DONTNEED && holds_bad)) return EIO;
    return MemoryOps::advise(host, size, advice);
  }
};

// A pool that only takes: what it takes reads as zero, like a hole.
class FakeTaker : public ChunkTaker {
 public:
  bool take(uint8_t* host) override {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(host) % kChunkBytes, 0u);
    ++asked;
    if (taken >= room) return false;
    ++taken;
    return ::madvise(host, kChunkBytes, MADV_DONTNEED) == 0;
  }
  bool honours_poison() const override { return honours; }
  bool honours = false;
  uint64_t room = UINT64_MAX;
  uint64_t asked = 0;
  uint64_t taken = 0;
};

inline uint8_t* host_of(const GuestMemory& memory, uint64_t address) {
  return memory.slice(GuestAddr{address}, 1)->data;
}
// Every byte of [address, address + bytes) becomes `value`.
inline void fill(const GuestMemory& memory, uint64_t address, uint64_t bytes, uint8_t value) {
  std::memset(host_of(memory, address), value, bytes);
}
inline bool all_bytes_are(const GuestMemory& memory, uint64_t address, uint64_t bytes,
                          uint8_t value) {
  const uint8_t* const at = host_of(memory, address);
  return at[0] == value && std::memcmp(at, at + 1, bytes - 1) == 0;
}
inline uint64_t resident(const GuestMemory& memory, uint64_t address, uint64_t bytes) {
  return resident_bytes(host_of(memory, address), bytes);
}
// What the memory file behind the region at `address` occupies.
inline uint64_t file_bytes(const GuestMemory& memory, uint64_t address) {
  for (const MemoryRegion& region : memory.regions()) {
    struct stat info{};
    if (region.contains(GuestAddr{address}, 1) && ::fstat(region.fd, &info) == 0)
      return static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return 0;
}
// A line of the mapping at `host` in /proc/self/smaps, "Rss" or the like, in bytes.
uint64_t smaps_bytes(const uint8_t* host, const std::string& key);

// 2 MiB huge pages for a test's life; 0 if the host has none to give.
class HugePages {
 public:
  explicit HugePages(uint64_t wanted) : x_before(read()) {
    write(x_before + wanted);
    x_got = read() >= x_before + wanted ? wanted : 0;
  }
  ~HugePages() { write(x_before); }
  [[nodiscard]] uint64_t got() const { return x_got; }

 private:
  static constexpr const char* kPath = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
  static uint64_t read() {
    uint64_t value = 0;
    std::ifstream(kPath) >> value;
    return value;
  }
  static void write(uint64_t value) { std::ofstream(kPath) << value << std::flush; }
  uint64_t x_before;
  uint64_t x_got = 0;
};

inline uint64_t smaps_bytes(const uint8_t* host, const std::string& key) {
  std::ifstream file("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(file, line)) {
    unsigned long begin = 0;
    unsigned long end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      const auto at = reinterpret_cast<uintptr_t>(host);
      inside = at >= begin && at < end;
    } else if (inside && line.starts_with(key + ":")) {
      return std::stoull(line.substr(key.size() + 1)) * kKiB;
    }
  }
  return 0;
}

}  // namespace lethe
