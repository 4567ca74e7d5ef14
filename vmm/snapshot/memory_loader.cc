#include "vmm/snapshot/memory_loader.h"

#include <poll.h>
#include <pthread.h>

#include <algorithm>
#include <cerrno>

#include "base/assert.h"
#include "base/log.h"

namespace lethe {
namespace {

constexpr size_t kFaultsAtOnce = 16;
constexpr std::chrono::milliseconds kStall{10};

}  // namespace

Result<std::unique_ptr<MemoryLoader>> MemoryLoader::create(const GuestMemory& memory, UniqueFd file,
                                                           MemoryTable table,
                                                           MemoryLoaderOptions options) {
  std::unique_ptr<MemoryLoader> loader(
      new MemoryLoader(memory, std::move(file), std::move(table), std::move(options)));
  const bool anonymous = std::ranges::none_of(
      memory.regions(), [](const MemoryRegion& region) { return region.fd >= 0; });
  if (loader->x_options.at_once || !anonymous || !loader->watch()) {
    LETHE_TRY(loader->load_at_once());
    return loader;
  }
  loader->x_thread = std::thread([raw = loader.get()] {
    (void)::pthread_setname_np(::pthread_self(), "restore");
    raw->run();
  });
  return loader;
}

MemoryLoader::MemoryLoader(const GuestMemory& memory, UniqueFd file, MemoryTable table,
                           MemoryLoaderOptions options)
    : x_options(std::move(options)),
      x_file(std::move(file)),
      x_zeros(std::make_unique<Buffer>()),
      x_left(table.blocks.size()),
      x_buffer(std::make_unique_for_overwrite<Buffer>()) {
  uint64_t base = 0;
  for (const MemoryRegion& region : memory.regions()) {
    if (region.removable) continue;
    x_regions.push_back({.host = region.host, .size = region.size, .base = base});
    base += region.size;
  }
  LETHE_ASSERT(base == table.bytes);
  x_pending.reserve(table.blocks.size());
  for (const MemoryBlock& block : table.blocks) x_pending.push_back({block, block.pages});
}

MemoryLoader::~MemoryLoader() {
  if (!x_thread.joinable()) return;
  x_ending.store(true, std::memory_order_release);
  x_stop->signal();
  x_thread.join();
}

bool MemoryLoader::watch() {
  auto stop = EventFd::create();
  int error = 0;
  PoolOps& ops = x_options.ops != nullptr ? *x_options.ops : PoolOps::system();
  x_userfault = Userfault::open(ops, false, error);
  if (!x_userfault || !stop) {
    log_info(LogModule::kMemory, "no userfaultfd ({}): the snapshot's memory is loaded at once",
             errno_text(error));
    x_userfault.reset();
    return false;
  }
  x_stop.emplace(std::move(*stop));
  for (const Region& region : x_regions) {
    if (x_userfault->watch_missing(region.host, region.size) == 0) continue;
    x_userfault.reset();  // closing it ends what was watched
    return false;
  }
  return true;
}

Result<> MemoryLoader::load_at_once() {
  MutexLock lock(x_mutex);
  for (Pending& pending : x_pending) {
    LETHE_TRY(read_block(x_file.get(), pending.block, host_of(pending.block)));
    pending.left = 0;
  }
  x_left = 0;
  x_complete.store(true, std::memory_order_release);
  return {};
}

uint8_t* MemoryLoader::host_of(const MemoryBlock& block) const {
  for (const Region& region : x_regions)
    if (block.offset() - region.base < region.size)
      return region.host + (block.offset() - region.base);
  LETHE_ASSERT(false);  // restore_table() checked it
  return nullptr;
}

void MemoryLoader::run() {
  std::array<pollfd, 2> fds = {pollfd{.fd = x_userfault->fd(), .events = POLLIN, .revents = 0},
                               pollfd{.fd = x_stop->fd(), .events = POLLIN, .revents = 0}};
  // Faults first: somebody waits.
  while (!complete()) {
    if (::poll(fds.data(), fds.size(), 0) > 0) {
      if (fds[1].revents != 0) return;
      std::array<Fault, kFaultsAtOnce> faults;
      const size_t count = x_userfault->read_faults(faults);
      for (size_t i = 0; i < count; ++i) answer(faults[i]);
      continue;
    }
    if (!load_next()) return;
  }
}

bool MemoryLoader::load_next() {
  MutexLock lock(x_mutex);
  while (x_next < x_pending.size() && x_pending[x_next].left == 0) ++x_next;
  if (x_next < x_pending.size() && !load(x_pending[x_next])) return false;
  end_if_complete();
  return !complete();
}

template <typename Call>
void MemoryLoader::for_blocks(const uint8_t* host, uint64_t size, Call call) {
  const auto region = std::ranges::find_if(x_regions, [&](const Region& candidate) {
    return host >= candidate.host && static_cast<uint64_t>(host - candidate.host) < candidate.size;
  });
  if (region == x_regions.end()) return;
  const auto offset = static_cast<uint64_t>(host - region->host);
  const uint64_t begin = region->base + offset;
  const uint64_t end = begin + std::min(size, region->size - offset);
  auto pending = std::ranges::lower_bound(
      x_pending, begin / kBlockBytes, {},
      [](const Pending& candidate) { return uint64_t{candidate.block.number}; });
  for (; pending != x_pending.end() && pending->block.offset() < end; ++pending) {
    uint32_t pages = 0;
    for (uint64_t i = 0; i < kBlockPages; ++i) {
      const uint64_t at = pending->block.offset() + i * kPageBytes;
      if (at >= begin && at < end) pages |= 1U << i;
    }
    call(*pending, static_cast<uint16_t>(pages));
  }
}

void MemoryLoader::drop(const uint8_t* host, uint64_t size) {
  if (complete()) return;
  MutexLock lock(x_mutex);
  for_blocks(host, size, [this](Pending& pending, uint16_t pages) LETHE_REQUIRES(x_mutex) {
    if (pending.left == 0) return;
    pending.left &= static_cast<uint16_t>(~pages);
    if (pending.left == 0) --x_left;
  });
  end_if_complete();
}

void MemoryLoader::fetch(const uint8_t* host, uint64_t size) {
  if (complete()) return;
  MutexLock lock(x_mutex);
  for_blocks(host, size, [this](Pending& pending, uint16_t pages) LETHE_REQUIRES(x_mutex) {
    if ((pending.left & pages) != 0) load(pending);
  });
  end_if_complete();
}

void MemoryLoader::fetch_all() {
  for (const Region& region : x_regions) fetch(region.host, region.size);
}

// What is left of a block. All of its pages are read, because the checksum is of all.
bool MemoryLoader::load(Pending& pending) {
  if (const auto read = read_block(x_file.get(), pending.block, x_buffer->bytes.data()); !read) {
    // Not answered: who waits for it waits on, rather than seeing what is not the guest's.
    if (x_options.on_failure) x_options.on_failure(read.error());
    return false;
  }
  uint8_t* const host = host_of(pending.block);
  for (const PageRun& run : runs_of(pending.left))
    if (!put_in_place(host + run.offset, x_buffer->bytes.data() + run.offset, run.bytes))
      return false;
  pending.left = 0;
  --x_left;
  return true;
}

bool MemoryLoader::put_in_place(uint8_t* to, const uint8_t* from, uint64_t size) {
  uint64_t done = 0;
  for (;;) {
    uint64_t more = 0;
    const int error = x_userfault->fill_copy(to + done, from + done, size - done, more);
    done += more;  // even if it failed then: a host short of memory has room for some pages
    if (error == 0) return true;
    // While a page is left nobody else can have filled it.
    LETHE_ASSERT(error != EEXIST);
    if (x_ending.load(std::memory_order_acquire)) return false;
    LETHE_LOG_LIMITED(LogModule::kMemory, "cannot put a snapshot's memory in place: {}",
                      errno_text(error));
    std::this_thread::sleep_for(kStall);  // the host is short of memory: the guest waits
  }
}

void MemoryLoader::answer(const Fault& fault) {
  MutexLock lock(x_mutex);
  const uint8_t* const page = fault.page;
  bool failed = false;
  for_blocks(page, kPageBytes, [&](Pending& pending, uint16_t pages) LETHE_REQUIRES(x_mutex) {
    if ((pending.left & pages) == 0) return;
    failed = !load(pending);
  });
  if (failed) return;
  // Never in the file, or dropped: zeros. EEXIST: loaded just now, or by an earlier answer.
  uint64_t done = 0;
  if (fault.write) {
    (void)x_userfault->fill_copy(fault.page, x_zeros->bytes.data(), kPageBytes, done);
  } else {
    (void)x_userfault->fill_zero(fault.page, kPageBytes, done);
  }
  x_userfault->wake(fault.page, kPageBytes);
  end_if_complete();
}

void MemoryLoader::end_if_complete() {
  if (x_left > 0 || complete()) return;
  for (const Region& region : x_regions) x_userfault->unwatch(region.host, region.size);
  x_complete.store(true, std::memory_order_release);
  if (x_options.on_complete) x_options.on_complete();
}

}  // namespace lethe
