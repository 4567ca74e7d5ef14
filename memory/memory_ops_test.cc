// The system calls themselves, on the kernel that runs the tests.
#include "memory/memory_ops.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "base/unique_fd.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

// Private anonymous memory, every byte of its first `filled` pages 0xaa.
class Pages {
 public:
  explicit Pages(uint64_t size, uint64_t filled)
      : x_size(size),
        x_host(static_cast<uint8_t*>(::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (x_host == MAP_FAILED) std::abort();
    std::fill_n(x_host, filled * kPageBytes, uint8_t{0xaa});
  }
  ~Pages() { ::munmap(x_host, x_size); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  [[nodiscard]] uint8_t* page(uint64_t index) const { return x_host + index * kPageBytes; }
  [[nodiscard]] iovec range(uint64_t index, uint64_t pages) const {
    return {.iov_base = page(index), .iov_len = pages * kPageBytes};
  }
  [[nodiscard]] bool reads(uint64_t index, uint64_t pages, uint8_t value) const {
    return std::all_of(page(index), page(index + pages), [&](uint8_t b) { return b == value; });
  }

 private:
  uint64_t x_size;
  uint8_t* x_host;
};

// Whether this kernel takes MADV_DONTNEED for several ranges of the process itself (Linux 6.13).
bool kernel_does_it() {
  const UniqueFd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  const Pages pages(2 * kPageBytes, 2);
  const iovec ranges[] = {pages.range(0, 1), pages.range(1, 1)};
  return self.valid() && ::process_madvise(self.get(), ranges, 2, MADV_DONTNEED, 0) ==
                             static_cast<ssize_t>(2 * kPageBytes);
}

size_t discard(std::span<const iovec> ranges) {
  return MemoryOps::system().advise_all(ranges, MADV_DONTNEED);
}

TEST(MemoryOpsAdviseAll, discards_several_ranges_and_nothing_beside_them_or_does_nothing) {
  const Pages pages(16 * kPageBytes, 16);
  const std::vector<iovec> ranges = {pages.range(1, 2), pages.range(8, 1), pages.range(5, 2)};
  const bool does_it = kernel_does_it();
  for (int time = 0; time < 3; ++time) {
    std::fill(pages.page(0), pages.page(16), uint8_t{0xaa});
    EXPECT_EQ(discard(ranges), does_it ? 3u : 0u);
    const auto now = static_cast<uint8_t>(does_it ? 0 : 0xaa);
    EXPECT_TRUE(pages.reads(0, 1, 0xaa));
    EXPECT_TRUE(pages.reads(1, 2, now));
    EXPECT_TRUE(pages.reads(3, 2, 0xaa));
    EXPECT_TRUE(pages.reads(5, 2, now));
    EXPECT_TRUE(pages.reads(7, 1, 0xaa));
    EXPECT_TRUE(pages.reads(8, 1, now));
    EXPECT_TRUE(pages.reads(9, 7, 0xaa));
  }
}

TEST(MemoryOpsAdviseAll, stops_at_the_range_that_fails) {
  const Pages pages(16 * kPageBytes, 16);
  ASSERT_EQ(::munmap(pages.page(4), kPageBytes), 0);
  const std::vector<iovec> ranges = {pages.range(0, 2), pages.range(3, 3), pages.range(8, 2)};
  EXPECT_EQ(discard(ranges), kernel_does_it() ? 1u : 0u);
  EXPECT_TRUE(pages.reads(0, 2, kernel_does_it() ? 0 : 0xaa));
  EXPECT_TRUE(pages.reads(8, 2, 0xaa));
  EXPECT_EQ(MemoryOps::system().advise(pages.page(3), 3 * kPageBytes, MADV_DONTNEED), ENOMEM);
}

TEST(MemoryOpsAdviseAll, of_more_ranges_than_the_kernel_takes_does_the_first_ones) {
  constexpr uint64_t kRanges = UIO_MAXIOV + 10;
  const Pages pages(2 * kRanges * kPageBytes, 2 * kRanges);
  std::vector<iovec> ranges;
  for (uint64_t i = 0; i < kRanges; ++i) ranges.push_back(pages.range(2 * i, 1));
  const size_t done = kernel_does_it() ? UIO_MAXIOV : 0;
  EXPECT_EQ(discard(ranges), done);
  for (uint64_t i = 0; i < kRanges; ++i) {
    ASSERT_TRUE(pages.reads(2 * i, 1, i < done ? 0 : 0xaa)) << i;
    ASSERT_TRUE(pages.reads(2 * i + 1, 1, 0xaa)) << i;
  }
}

TEST(MemoryOpsAdviseAll, of_more_bytes_than_the_kernel_takes_does_the_ranges_that_fit) {
  constexpr uint64_t kGibPages = kGiB / kPageBytes;
  const Pages pages(3 * kGiB, 1);
  pages.page(3 * kGibPages - 1)[0] = 0xaa;
  const std::vector<iovec> ranges = {pages.range(0, kGibPages), pages.range(kGibPages, kGibPages),
                                     pages.range(2 * kGibPages, kGibPages)};
  // The kernel ends a page before 2 GiB, inside the second range.
  EXPECT_EQ(discard(ranges), kernel_does_it() ? 1u : 0u);
  EXPECT_EQ(pages.page(3 * kGibPages - 1)[0], 0xaa);
}

TEST(MemoryOpsAdviseAll, in_a_forked_child_leaves_the_parents_memory_alone) {
  const Pages pages(4 * kPageBytes, 4);
  const std::vector<iovec> ranges = {pages.range(0, 1), pages.range(2, 1)};
  const Pages other(2 * kPageBytes, 2);
  const std::vector<iovec> first = {other.range(0, 1), other.range(1, 1)};
  (void)discard(first);  // the parent has looked what the kernel does
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(static_cast<int>(discard(ranges)));
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0) << "ranges that the child thinks discarded";
  EXPECT_TRUE(pages.reads(0, 4, 0xaa));
}

}  // namespace
}  // namespace lethe
