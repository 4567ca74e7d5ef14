// What is mapped in this process, page by page, asked without touching it: /proc/self/pagemap
// (proc(5); PAGEMAP_SCAN: Linux 6.7, Documentation/admin-guide/mm/pagemap.rst).
//
// Threading: any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "base/unique_fd.h"
#include "memory/pool_ops.h"

namespace lethe {

class PageMap {
 public:
  // Nothing if /proc is not there. `ops` must outlive it.
  [[nodiscard]] static std::unique_ptr<PageMap> open(PoolOps& ops = PoolOps::system());

  // True if the chunk (2 MiB, aligned) has no page at all, not even one that is swapped out. False
  // if it has, or if that can't be found out.
  [[nodiscard]] bool is_hole(const uint8_t* chunk) const;
  // True if all of the chunk is there.
  [[nodiscard]] bool is_full(const uint8_t* chunk) const;
  // True if the chunk is one huge page with memory of its own (not the shared huge zero page).
  // Nothing if the kernel can't tell.
  [[nodiscard]] std::optional<bool> is_huge(const uint8_t* chunk) const;
  // Sets bit i of `bits` (512 of them) for each page of the chunk that is there or swapped out.
  // `pages`: how many from `at` (page aligned), 512 at most. False if that can't be found out.
  [[nodiscard]] bool read_pages(const uint8_t* at, uint32_t pages, uint64_t (&bits)[8]) const;

  // Bytes of [from, from + size) that are mapped; both in whole pages. Some 1 us for 8 MiB of huge
  // pages, a third of what mincore(2) takes. Nothing if the kernel can't tell (before Linux 6.7).
  [[nodiscard]] std::optional<uint64_t> mapped_bytes(const uint8_t* from, uint64_t size) const;

 private:
  PageMap(UniqueFd fd, PoolOps& ops);
  [[nodiscard]] int scan(const uint8_t* chunk, uint64_t inverted, uint64_t all, uint64_t any,
                         bool& whole) const;
  UniqueFd x_fd;
  PoolOps& x_ops;
  bool x_can_scan = false;
};

}  // namespace lethe
