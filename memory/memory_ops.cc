#include "memory/memory_ops.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace lethe {
namespace {

constexpr uint64_t kPageSize = 4096;

}  // namespace

int MemoryOps::advise(uint8_t* host, uint64_t size, int advice) {
  return ::madvise(host, size, advice) == 0 ? 0 : errno;
}

int MemoryOps::punch_hole(int fd, uint64_t offset, uint64_t size) {
  for (;;) {
    if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                    static_cast<off_t>(size)) == 0)
      return 0;
    if (errno != EINTR) return errno;
  }
}

int MemoryOps::resident(const uint8_t* host, std::span<uint8_t> pages) {
  // SAFETY: mincore() writes to `pages` only; the address is not written through.
  return ::mincore(const_cast<uint8_t*>(host), pages.size() * kPageSize, pages.data()) == 0 ? 0
                                                                                            : errno;
}

MemoryOps& MemoryOps::system() {
  static MemoryOps ops;
  return ops;
}

uint64_t resident_bytes(const uint8_t* host, uint64_t size) {
  std::array<uint8_t, 16384> pages;
  uint64_t total = 0;
  for (uint64_t at = 0; at < size; at += pages.size() * kPageSize) {
    const std::span<uint8_t> part(pages.data(),
                                  std::min<uint64_t>(pages.size(), (size - at) / kPageSize));
    if (MemoryOps::system().resident(host + at, part) != 0) continue;
    for (const uint8_t page : part) total += (page & 1) * kPageSize;
  }
  return total;
}

}  // namespace lethe
