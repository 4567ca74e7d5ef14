#include "memory/memory_ops.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/unique_fd.h"
#include "memory/guest_memory.h"
#include "memory/page_map.h"

namespace lethe {
namespace {

constexpr size_t kLookPages = 512;  // what PageMap::read_pages() tells at a time

// Null if /proc is not there.
const PageMap* page_map() {
  static const std::unique_ptr<PageMap> pages = PageMap::open();
  return pages.get();
}

// A pidfd of this process, if process_madvise() takes advice that destroys content for it: the
// process itself may give any, but only from Linux 6.13 on. Nothing else says so, so a page is
// tried.
UniqueFd open_self() {
  // glibc 2.36 declares pidfd_open() for C only.
  UniqueFd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!self.valid()) return {};
  void* const page = ::mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (page == MAP_FAILED) return {};
  // SAFETY: a page of our own. Volatile: the kernel changes it in between.
  volatile uint8_t* const content = static_cast<uint8_t*>(page);
  *content = 1;
  const iovec range{.iov_base = page, .iov_len = kPageBytes};
  const bool works = ::process_madvise(self.get(), &range, 1, MADV_DONTNEED, 0) ==
                         static_cast<ssize_t>(kPageBytes) &&
                     *content == 0;
  ::munmap(page, kPageBytes);
  return works ? std::move(self) : UniqueFd();
}

// Opened at the first use; for the life of the process. A child made by fork() would name its
// parent with it, and is refused: advice that destroys is for oneself only.
const UniqueFd& self() {
  static const UniqueFd fd = open_self();
  return fd;
}

// lseek(2), SEEK_DATA: in a memory file a page that is swapped out is data, too. Moves the file's
// position, which nobody uses.
int exists_in_file(int fd, uint64_t offset, std::span<uint8_t> pages) {
  std::ranges::fill(pages, uint8_t{0});
  const auto end = static_cast<off_t>(offset + pages.size() * kPageBytes);
  for (auto at = static_cast<off_t>(offset); at < end;) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0) return errno == ENXIO ? 0 : errno;  // ENXIO: no more
    const off_t hole = ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0) return errno;
    const auto page_of = [&](off_t to) {
      return (static_cast<uint64_t>(std::min(to, end)) - offset) / kPageBytes;
    };
    for (uint64_t page = page_of(data); page < page_of(hole); ++page) pages[page] = 1;
    at = hole;
  }
  return 0;
}

}  // namespace

int MemoryOps::advise(uint8_t* host, uint64_t size, int advice) {
  return ::madvise(host, size, advice) == 0 ? 0 : errno;
}

size_t MemoryOps::advise_all(std::span<const iovec> ranges, int advice) {
  if (!self().valid()) return 0;
  const ssize_t advised = ::process_madvise(self().get(), ranges.data(),
                                            std::min<size_t>(ranges.size(), UIO_MAXIOV), advice, 0);
  // Bytes of whole ranges, except where the kernel takes no more than 2 GiB at a time:
  // process_madvise(2).
  auto left = static_cast<uint64_t>(std::max<ssize_t>(advised, 0));
  size_t done = 0;
  while (done < ranges.size() && ranges[done].iov_len <= left) left -= ranges[done++].iov_len;
  return done;
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
  return ::mincore(const_cast<uint8_t*>(host), pages.size() * kPageBytes, pages.data()) == 0
             ? 0
             : errno;
}

std::optional<uint64_t> MemoryOps::mapped(const uint8_t* host, uint64_t size) {
  const PageMap* const pages = page_map();
  if (pages == nullptr) return std::nullopt;
  return pages->mapped_bytes(host, size);
}

int MemoryOps::exists(const uint8_t* host, int fd, uint64_t offset, std::span<uint8_t> pages) {
  if (fd >= 0) {
    if (exists_in_file(fd, offset, pages) == 0) return 0;
    // A file of huge pages can't be asked; it is never swapped out.
    const int error = resident(host, pages);
    for (uint8_t& page : pages) page &= 1;
    return error;
  }
  const PageMap* const map = page_map();
  if (map == nullptr) return ENOSYS;
  for (size_t at = 0; at < pages.size(); at += kLookPages) {
    const size_t count = std::min(kLookPages, pages.size() - at);
    uint64_t bits[kLookPages / 64];
    if (!map->read_pages(host + at * kPageBytes, static_cast<uint32_t>(count), bits)) return EIO;
    for (size_t i = 0; i < count; ++i) pages[at + i] = bits[i / 64] >> i % 64 & 1;
  }
  return 0;
}

MemoryOps& MemoryOps::system() {
  static MemoryOps ops;
  return ops;
}

uint64_t resident_bytes(const uint8_t* host, uint64_t size) {
  std::array<uint8_t, 16384> pages;
  uint64_t total = 0;
  for (uint64_t at = 0; at < size; at += pages.size() * kPageBytes) {
    const std::span<uint8_t> part(pages.data(),
                                  std::min<uint64_t>(pages.size(), (size - at) / kPageBytes));
    if (MemoryOps::system().resident(host + at, part) != 0) continue;
    for (const uint8_t page : part) total += (page & 1) * kPageBytes;
  }
  return total;
}

}  // namespace lethe
