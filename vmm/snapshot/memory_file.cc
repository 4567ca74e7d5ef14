#include "vmm/snapshot/memory_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/assert.h"
#include "memory/memory_ops.h"

namespace lethe {
namespace {

constexpr uint64_t kLookBytes = 2 * kMiB;  // asked at a time what is there
constexpr uint64_t kLookPages = kLookBytes / kPageBytes;

bool is_zero(const uint8_t* page) {
  static constexpr std::array<uint8_t, kPageBytes> kZeros{};
  return std::memcmp(page, kZeros.data(), kPageBytes) == 0;
}

Result<> write_all(int fd, const uint8_t* from, uint64_t bytes, uint64_t offset) {
  while (bytes > 0) {
    const ssize_t done = ::pwrite(fd, from, bytes, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return host_error("{}", errno_text(done < 0 ? errno : ENOSPC));
    from += done;
    bytes -= static_cast<uint64_t>(done);
    offset += static_cast<uint64_t>(done);
  }
  return {};
}

// One region of RAM on its way into the file, block by block; what is contiguous is written in one
// call.
class RegionWriter {
 public:
  // `base`: where in the file the region begins.
  RegionWriter(const MemoryRegion& region, uint64_t base, int fd, MemoryTable& table)
      : x_region(region), x_base(base), x_fd(fd), x_table(table) {}

  Result<> write() {
    for (uint64_t at = 0; at < x_region.size; at += kLookBytes) {
      const uint64_t size = std::min(kLookBytes, x_region.size - at);
      const std::span<uint8_t> there(x_there.data(), size / kPageBytes);
      // Where that can't be found out all of it is looked at.
      if (MemoryOps::system().exists(x_region.host + at, x_region.fd, at, there) != 0)
        std::ranges::fill(there, uint8_t{1});
      if (std::ranges::none_of(there, [](uint8_t page) { return page != 0; })) continue;
      for (uint64_t block = 0; block < size; block += kBlockBytes)
        LETHE_TRY(add_block(at + block, there.subspan(block / kPageBytes)));
    }
    return flush();
  }

 private:
  // `there`: of its pages, and perhaps more.
  Result<> add_block(uint64_t at, std::span<const uint8_t> there) {
    const uint8_t* const host = x_region.host + at;
    const uint64_t count = std::min<uint64_t>(kBlockPages, there.size());
    uint32_t pages = 0;
    for (uint64_t i = 0; i < count; ++i)
      if (there[i] != 0 && !is_zero(host + i * kPageBytes)) pages |= 1U << i;
    if (pages == 0) return {};
    const auto mask = static_cast<uint16_t>(pages);
    x_table.blocks.push_back({.number = static_cast<uint32_t>((x_base + at) / kBlockBytes),
                              .pages = mask,
                              .sum = block_sum(host, mask)});
    for (const PageRun& run : runs_of(mask)) LETHE_TRY(add_run(at + run.offset, run.bytes));
    return {};
  }

  Result<> add_run(uint64_t at, uint64_t bytes) {
    if (x_run_bytes > 0 && x_run_at + x_run_bytes == at) {
      x_run_bytes += bytes;
      return {};
    }
    LETHE_TRY(flush());
    x_run_at = at;
    x_run_bytes = bytes;
    return {};
  }

  Result<> flush() {
    const uint64_t bytes = std::exchange(x_run_bytes, 0);
    return write_all(x_fd, x_region.host + x_run_at, bytes, x_base + x_run_at);
  }

  const MemoryRegion& x_region;
  const uint64_t x_base;
  const int x_fd;
  MemoryTable& x_table;
  uint64_t x_run_at = 0;
  uint64_t x_run_bytes = 0;
  std::array<uint8_t, kLookPages> x_there{};
};

}  // namespace

uint64_t MemoryTable::bytes_used() const {
  uint64_t pages = 0;
  for (const MemoryBlock& block : blocks)
    pages += static_cast<uint64_t>(std::popcount(block.pages));
  return pages * kPageBytes;
}

PageRuns runs_of(uint16_t pages) {
  PageRuns result;
  for (uint32_t i = 0; i < kBlockPages;) {
    const auto rest = static_cast<uint16_t>(pages >> i);
    if (rest == 0) break;
    i += static_cast<uint32_t>(std::countr_zero(rest));
    const auto length = static_cast<uint32_t>(std::countr_one(static_cast<uint16_t>(pages >> i)));
    result.runs[result.count++] = {.offset = static_cast<uint32_t>(i * kPageBytes),
                                   .bytes = static_cast<uint32_t>(length * kPageBytes)};
    i += length;
  }
  return result;
}

uint64_t block_sum(const uint8_t* block, uint16_t pages) {
  const PageRuns runs = runs_of(pages);
  if (runs.count == 1) return XXH3_64bits(block + runs.runs[0].offset, runs.runs[0].bytes);
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (const PageRun& run : runs) XXH3_64bits_update(&state, block + run.offset, run.bytes);
  return XXH3_64bits_digest(&state);
}

Result<MemoryTable> write_memory(const GuestMemory& memory, int fd) {
  MemoryTable table;
  table.bytes = memory.total_bytes();
  if (::ftruncate(fd, static_cast<off_t>(table.bytes)) != 0)
    return host_error("{}", errno_text(errno));
  uint64_t base = 0;
  for (const MemoryRegion& region : memory.regions()) {
    if (region.removable) continue;
    LETHE_ASSERT(region.size % kBlockBytes == 0);
    LETHE_TRY(RegionWriter(region, base, fd, table).write());
    base += region.size;
  }
  return table;
}

void save_table(const MemoryTable& table, StateWriter& to) {
  to.begin_section("memory", 1);
  to.number(table.bytes);
  to.number(static_cast<uint32_t>(table.blocks.size()));
  for (const MemoryBlock& block : table.blocks) {
    to.number(block.number);
    to.number(block.pages);
    to.number(block.sum);
  }
  to.end_section();
}

Result<MemoryTable> restore_table(uint64_t bytes, StateReader& from) {
  MemoryTable table;
  from.begin_section("memory", 1);
  table.bytes = from.number<uint64_t>();
  const auto count = from.number<uint32_t>();
  if (from.ok() && table.bytes != bytes)
    from.fail(fmt::format("{} bytes of RAM, the config says {}", table.bytes, bytes));
  const uint64_t end = bytes / kBlockBytes;
  if (count > end) from.fail(fmt::format("{} blocks, {} bytes have {}", count, bytes, end));
  uint64_t next = 0;
  for (uint32_t i = 0; i < count && from.ok(); ++i) {
    MemoryBlock block;
    block.number = from.number<uint32_t>();
    block.pages = from.number<uint16_t>();
    block.sum = from.number<uint64_t>();
    if (from.ok() && (block.number < next || block.number >= end || block.pages == 0))
      from.fail(fmt::format("block {} is out of order", block.number));
    next = uint64_t{block.number} + 1;
    table.blocks.push_back(block);
  }
  from.end_section();
  LETHE_TRY(from.check());
  return table;
}

Result<> read_block(int fd, const MemoryBlock& block, uint8_t* to) {
  for (const PageRun& run : runs_of(block.pages)) {
    for (uint32_t done = 0; done < run.bytes;) {
      const uint32_t at = run.offset + done;
      const ssize_t got =
          ::pread(fd, to + at, run.bytes - done, static_cast<off_t>(block.offset() + at));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return host_error("snapshot: its memory can't be read: {}", errno_text(errno));
      if (got == 0) return config_error("snapshot: its memory ends early: the file was truncated");
      done += static_cast<uint32_t>(got);
    }
  }
  if (block_sum(to, block.pages) != block.sum)
    return config_error("snapshot: its memory was altered, at {:#x} to {:#x} of the file",
                        block.offset(), block.offset() + kBlockBytes);
  return {};
}

}  // namespace lethe
