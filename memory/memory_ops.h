// The system calls that give guest memory back to the host, and the question what is resident.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace lethe {

// Tests replace it to make calls fail. All return 0 or an errno value. Any thread.
class MemoryOps {
 public:
  virtual ~MemoryOps() = default;
  // madvise(2): `host` and `size` in whole pages.
  [[nodiscard]] virtual int advise(uint8_t* host, uint64_t size, int advice);
  // The same for several ranges, each of whole pages and not empty, in one call: the kernel then
  // tells other processors once for all of them (process_madvise(2) of this process; MADV_DONTNEED
  // from Linux 6.13, told once from 6.16). Returns how many of them are wholly advised: ranges[0]
  // and so on. That is not all of them if the kernel does not do this (it is tried once, at the
  // first call), if it fails at one of them, and where they are more than UIO_MAXIOV or 2 GiB. The
  // rest may be advised in part: advise() says what is wrong with one.
  [[nodiscard]] virtual size_t advise_all(std::span<const iovec> ranges, int advice);
  // fallocate(2) with PUNCH_HOLE | KEEP_SIZE. In a file of huge pages, a part of one is overwritten
  // with zeroes instead, if it is there.
  [[nodiscard]] virtual int punch_hole(int fd, uint64_t offset, uint64_t size);
  // mincore(2): the low bit of pages[i] says whether page i from `host` on is resident.
  [[nodiscard]] virtual int resident(const uint8_t* host, std::span<uint8_t> pages);

  // Bytes of anonymous memory that are resident, without a look at each page; nothing if that can't
  // be found out quickly here.
  [[nodiscard]] virtual std::optional<uint64_t> mapped(const uint8_t* host, uint64_t size);

  // As resident(), but swapped-out pages count: pages[i] becomes 1 if page i has content, else 0.
  // `fd` and `offset` (bytes) say where in a memory file it is; -1: anonymous memory.
  [[nodiscard]] virtual int exists(const uint8_t* host, int fd, uint64_t offset,
                                   std::span<uint8_t> pages);

  static MemoryOps& system();
};

// Bytes of [host, host + size) that are resident, by mincore(2). Whole pages. For tests and
// measurements; 0 if the host does not tell. Pages of a file count when they are in the file,
// mapped or not.
[[nodiscard]] uint64_t resident_bytes(const uint8_t* host, uint64_t size);

}  // namespace lethe
