#include "memory/scrub_pool.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#include "base/log.h"
#include "base/mutex.h"
#include "memory/chunk_mover.h"
#include "memory/chunk_store.h"
#include "memory/fault_thread.h"
#include "memory/guest_chunks.h"

namespace lethe {
namespace {

constexpr uint32_t kWorkersMax = 16;

// The idle-priority threads. They take no lock: one that gets no time must not hold up another.
class Scrubbers {
 public:
  explicit Scrubbers(ChunkStore& store) : x_store(store) {}
  ~Scrubbers() {
    x_stop.store(true, std::memory_order_release);
    x_work.fetch_add(1, std::memory_order_release);
    x_work.notify_all();
    for (std::thread& thread : x_threads) {
      // So that it ends soon, though others keep the processors busy. Not always permitted.
      const sched_param none{};
      (void)::pthread_setschedparam(thread.native_handle(), SCHED_OTHER, &none);
      thread.join();
    }
  }
  Scrubbers(const Scrubbers&) = delete;
  Scrubbers& operator=(const Scrubbers&) = delete;

  // Throws std::system_error.
  void add() {
    const size_t number = x_threads.size();
    x_threads.emplace_back([this, number] { run(number); });
  }
  // There is a dirty chunk.
  void wake() {
    x_work.fetch_add(1, std::memory_order_release);
    x_work.notify_one();
  }

 private:
  void run(size_t number) {
    ::pthread_setname_np(::pthread_self(), fmt::format("scrub{}", number).c_str());
    const sched_param none{};
    (void)::pthread_setschedparam(::pthread_self(), SCHED_IDLE, &none);
    while (true) {
      // Before the search: a chunk that becomes dirty behind it changes the number.
      const int seen = x_work.load(std::memory_order_acquire);
      if (x_stop.load(std::memory_order_acquire)) return;
      if (!x_store.scrub_one()) x_work.wait(seen, std::memory_order_acquire);
    }
  }

  ChunkStore& x_store;
  std::atomic<bool> x_stop{false};
  std::atomic<int> x_work{0};
  std::vector<std::thread> x_threads;
};

// What exists from the first take() on.
struct Engine {
  std::unique_ptr<Userfault> userfault;
  std::unique_ptr<ChunkCarrier> carrier;
  std::unique_ptr<ChunkStore> store;
  std::unique_ptr<Scrubbers> scrubbers;
  std::unique_ptr<FaultThread> faults;
  bool drop_tables = false;  // see fault_thread.h
};

// Does MADV_DONTNEED over a hole take its page table away, so that a huge page can be put there
// whole? Tried with one of 2 MiB beside guest memory.
bool tables_can_be_dropped(const Userfault& userfault, const PageMap& pages, ChunkStore& store) {
  constexpr uint64_t kSize = 2 * kChunkBytes;
  void* const area = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) return false;
  const auto begin = reinterpret_cast<uintptr_t>(area);
  // SAFETY: the aligned chunk lies inside the mapping, which is twice as large.
  uint8_t* const chunk = static_cast<uint8_t*>(area) + (kChunkBytes - begin % kChunkBytes);
  bool whole = false;
  (void)::madvise(area, kSize, MADV_NOHUGEPAGE);
  *static_cast<volatile uint8_t*>(chunk) = 1;
  if (::madvise(chunk, kChunkBytes, MADV_DONTNEED) == 0 &&
      userfault.watch_missing(chunk, kChunkBytes) == 0 && store.give_fresh(chunk, 0))
    whole = pages.is_huge(chunk).value_or(false);
  ::munmap(area, kSize);
  return whole;
}

class ScrubPoolImpl : public ScrubPool {
 public:
  ScrubPoolImpl(const GuestMemory& memory, const ScrubPoolOptions& options)
      : x_options(options),
        x_ops(options.ops != nullptr ? *options.ops : PoolOps::system()),
        x_guest(memory),
        x_bytes_max(options.bytes_max) {}
  ~ScrubPoolImpl() override;

  bool take(uint8_t* host) override;
  void set_bytes_max(uint64_t bytes) override;
  void set_poison(uint32_t value) override;
  [[nodiscard]] bool honours_poison() const override {
    return x_poison.load(std::memory_order_acquire) != 0 &&
           x_watching.load(std::memory_order_acquire);
  }
  void report_metrics(MetricSink& sink) const override;
  [[nodiscard]] Stats stats() const override;

 private:
  [[nodiscard]] bool ready(uint8_t* host);
  [[nodiscard]] bool open_pages() LETHE_REQUIRES(x_mutex);
  [[nodiscard]] bool start() LETHE_REQUIRES(x_mutex);
  [[nodiscard]] std::unique_ptr<Engine> make_engine(ChunkMover mover) LETHE_REQUIRES(x_mutex);
  [[nodiscard]] bool watch(Engine& engine) LETHE_REQUIRES(x_mutex);
  void unwatch(Engine& engine) LETHE_REQUIRES(x_mutex);
  void give_up(std::string_view why) LETHE_REQUIRES(x_mutex);
  [[nodiscard]] bool movable(uint8_t* host) const;

  const ScrubPoolOptions x_options;
  PoolOps& x_ops;
  GuestChunks x_guest;
  PoolCounters x_counters;
  std::atomic<uint64_t> x_bytes_max;
  std::atomic<uint32_t> x_poison{0};  // not 0: pages that were there are known
  std::atomic<bool> x_failed{false};  // no pool on this host, or no more
  std::atomic<bool> x_watching{false};

  // Made once, under the mutex; read through the atomics without it.
  Mutex x_mutex;
  std::unique_ptr<PageMap> x_pages_owner LETHE_GUARDED_BY(x_mutex);
  std::unique_ptr<Engine> x_engine_owner LETHE_GUARDED_BY(x_mutex);
  std::atomic<PageMap*> x_pages{nullptr};
  std::atomic<Engine*> x_engine{nullptr};
};

ScrubPoolImpl::~ScrubPoolImpl() {
  const MutexLock lock(x_mutex);
  if (!x_engine_owner) return;
  // Whoever waits for a fault is woken, and gets its memory from the kernel.
  unwatch(*x_engine_owner);
  x_engine_owner->faults.reset();
  x_engine_owner->scrubbers.reset();
}

bool ScrubPoolImpl::take(uint8_t* host) {
  const uint64_t bytes_max = x_bytes_max.load(std::memory_order_relaxed);
  if (bytes_max < kChunkBytes || x_failed.load(std::memory_order_relaxed)) return false;
  const auto chunk = x_guest.chunk_at(host);
  if (!chunk || x_guest.host(*chunk) != host || !ready(host)) return false;
  Engine& engine = *x_engine.load(std::memory_order_acquire);
  if (!engine.carrier->usable()) {
    const MutexLock lock(x_mutex);
    give_up("the pool has made as many mappings as it may; freed memory is discarded from now on");
    return false;
  }
  x_guest.set_taken(*chunk, true);
  if (!engine.store->take_in(host, bytes_max)) {
    x_guest.set_taken(*chunk, false);
    return false;
  }
  if (!x_options.scrub_at_map) engine.scrubbers->wake();
  engine.faults->arm();  // the timer also trims, should the limit have sunk meanwhile
  return true;
}

// Everything is running, and the chunk is one that can be moved.
bool ScrubPoolImpl::ready(uint8_t* host) {
  if (x_pages.load(std::memory_order_acquire) == nullptr) {
    const MutexLock lock(x_mutex);
    if (!open_pages()) return false;
  }
  // Before anything is started: guests report memory they never touched, too.
  if (!movable(host)) {
    x_counters.refused.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  if (x_watching.load(std::memory_order_acquire)) return true;
  const MutexLock lock(x_mutex);
  // Not after a set_bytes_max() that has just switched the watch off.
  return x_bytes_max.load(std::memory_order_relaxed) >= kChunkBytes && start();
}

bool ScrubPoolImpl::movable(uint8_t* host) const {
  const PageMap& pages = *x_pages.load(std::memory_order_acquire);
  if (!x_options.huge_pages) return pages.is_full(host);
  const std::optional<bool> huge = pages.is_huge(host);
  return huge ? *huge : pages.is_full(host);
}

bool ScrubPoolImpl::open_pages() {
  if (x_pages_owner || x_failed.load(std::memory_order_relaxed)) return x_pages_owner != nullptr;
  x_pages_owner = PageMap::open(x_ops);
  if (!x_pages_owner) {
    give_up("/proc/self/pagemap can't be read; freed memory is discarded");
    return false;
  }
  x_pages.store(x_pages_owner.get(), std::memory_order_release);
  return true;
}

// Makes what is missing: the engine, the watch over guest memory.
bool ScrubPoolImpl::start() {
  if (x_failed.load(std::memory_order_relaxed)) return false;
  if (x_watching.load(std::memory_order_relaxed)) return true;
  if (!x_engine_owner) {
    const ChunkMoverProbe probe = x_options.probe            ? *x_options.probe
                                  : x_options.ops != nullptr ? probe_chunk_mover(*x_options.ops)
                                                             : probe_chunk_mover();
    if (probe.mover != ChunkMover::kUserfaultMove)
      log_warn(LogModule::kMemory, "scrub pool: {}", probe.why);
    if (probe.mover != ChunkMover::kNone) x_engine_owner = make_engine(probe.mover);
    if (!x_engine_owner) {
      give_up(probe.mover == ChunkMover::kNone
                  ? ""
                  : "the pool can't be set up: the host refuses memory, threads or descriptors; "
                    "freed memory is discarded");
      return false;
    }
    x_engine.store(x_engine_owner.get(), std::memory_order_release);
  }
  if (!watch(*x_engine_owner)) {
    unwatch(*x_engine_owner);
    give_up("guest memory can't be watched with userfaultfd; freed memory is discarded");
    return false;
  }
  return true;
}

std::unique_ptr<Engine> ScrubPoolImpl::make_engine(ChunkMover mover) {
  auto engine = std::make_unique<Engine>();
  int error = 0;
  const bool move = mover == ChunkMover::kUserfaultMove;
  engine->userfault = Userfault::open(x_ops, move, error);
  if (!engine->userfault) return nullptr;
  const bool huge = x_options.huge_pages;
  engine->carrier = move ? make_userfault_carrier(*engine->userfault)
                         : make_mremap_carrier(*engine->userfault, x_ops, huge);
  engine->store =
      ChunkStore::create(x_guest.chunk_count(), huge, *engine->carrier, x_ops, x_counters);
  if (!engine->store) return nullptr;
  engine->store->set_scrub_value(x_poison.load(std::memory_order_relaxed));
  if (move &&
      engine->userfault->watch_nothing(engine->store->arena(), engine->store->arena_bytes()) != 0)
    return nullptr;
  x_guest.make_flags();
  engine->scrubbers = std::make_unique<Scrubbers>(*engine->store);
  engine->drop_tables =
      move && huge && tables_can_be_dropped(*engine->userfault, *x_pages_owner, *engine->store);
  try {
    if (!x_options.scrub_at_map)
      for (uint32_t i = 0; i < std::clamp(x_options.workers, 1U, kWorkersMax); ++i)
        engine->scrubbers->add();
  } catch (const std::system_error&) {
    return nullptr;
  }
  engine->faults = FaultThread::start({.userfault = *engine->userfault,
                                       .pages = *x_pages_owner,
                                       .guest = x_guest,
                                       .store = *engine->store,
                                       .counters = x_counters,
                                       .ops = x_ops,
                                       .watching = x_watching,
                                       .bytes_max = x_bytes_max,
                                       .poison = x_poison,
                                       .drop_tables = engine->drop_tables},
                                      x_options.forget_max);
  return engine->faults ? std::move(engine) : nullptr;
}

bool ScrubPoolImpl::watch(Engine& engine) {
  const MutexLock lock(engine.faults->exclude_answers());
  for (const GuestChunks::Region& region : x_guest.regions()) {
    if (engine.userfault->watch_missing(region.host, region.size) != 0) return false;
    if (engine.drop_tables) (void)x_ops.advise(region.host, region.size, MADV_NOHUGEPAGE);
  }
  x_watching.store(true, std::memory_order_release);
  return true;
}

void ScrubPoolImpl::unwatch(Engine& engine) {
  const MutexLock lock(engine.faults->exclude_answers());
  x_watching.store(false, std::memory_order_release);
  for (const GuestChunks::Region& region : x_guest.regions()) {
    if (engine.drop_tables) (void)x_ops.advise(region.host, region.size, MADV_HUGEPAGE);
    engine.userfault->unwatch(region.host, region.size);
  }
}

void ScrubPoolImpl::give_up(std::string_view why) {
  if (x_failed.exchange(true, std::memory_order_acq_rel)) return;
  if (!why.empty()) log_warn(LogModule::kMemory, "scrub pool: {}", why);
  x_bytes_max.store(0, std::memory_order_relaxed);
  if (!x_engine_owner || !x_engine_owner->faults) return;
  if (!x_engine_owner->store->trim(0)) x_engine_owner->faults->hurry();
  if (x_poison.load(std::memory_order_relaxed) == 0) unwatch(*x_engine_owner);
}

void ScrubPoolImpl::set_bytes_max(uint64_t bytes) {
  const MutexLock lock(x_mutex);
  if (x_failed.load(std::memory_order_relaxed)) return;
  x_bytes_max.store(bytes, std::memory_order_relaxed);
  if (!x_engine_owner) return;
  // What a thread has in hand right now stays until the timer looks again.
  if (!x_engine_owner->store->trim(bytes)) x_engine_owner->faults->hurry();
  if (bytes < kChunkBytes && x_watching.load(std::memory_order_relaxed) &&
      x_poison.load(std::memory_order_relaxed) == 0)
    unwatch(*x_engine_owner);
}

void ScrubPoolImpl::set_poison(uint32_t value) {
  const MutexLock lock(x_mutex);
  const uint32_t before = x_poison.load(std::memory_order_relaxed);
  if (value == before) return;
  if (value != 0 && before == 0) {
    if (!x_guest.all_of_memory()) return;
    // Watched first: from then on no page comes to be but through the fault thread.
    if (!open_pages() || !start()) return;
    if (!x_guest.remember_pages(*x_pages_owner)) {
      // What was taken from now on would come back as zeros.
      give_up("can't find out which pages the guest has touched; freed memory is overwritten");
      return;
    }
  }
  if (x_engine_owner) x_engine_owner->store->set_scrub_value(value);
  x_poison.store(value, std::memory_order_release);
  if (x_engine_owner) x_engine_owner->scrubbers->wake();
}

ScrubPool::Stats ScrubPoolImpl::stats() const {
  const auto bytes = [](const std::atomic<uint64_t>& chunks) {
    return chunks.load(std::memory_order_relaxed) * kChunkBytes;
  };
  Stats result;
  if (const Engine* const engine = x_engine.load(std::memory_order_acquire)) {
    const auto counts = engine->store->count();
    const auto of = [&](ChunkState state) {
      return counts[static_cast<size_t>(state)] * kChunkBytes;
    };
    result.dirty_bytes = of(ChunkState::kDirty);
    result.scrubbing_bytes = of(ChunkState::kScrubbing) + of(ChunkState::kExpiring);
    result.clean_bytes = of(ChunkState::kClean);
  }
  result.bytes_max = x_bytes_max.load(std::memory_order_relaxed);
  result.moved_bytes = bytes(x_counters.moved);
  result.refaulted_bytes = bytes(x_counters.by_pool);
  result.neighbour_bytes = bytes(x_counters.by_neighbour);
  result.fresh_bytes = bytes(x_counters.by_fresh);
  result.small_bytes = x_counters.small_bytes.load(std::memory_order_relaxed);
  result.scrubbed_bytes = bytes(x_counters.scrubbed);
  result.expired_bytes = bytes(x_counters.expired);
  result.trimmed_bytes = bytes(x_counters.trimmed);
  result.lost_bytes = bytes(x_counters.lost);
  result.refused = x_counters.refused.load(std::memory_order_relaxed);
  result.stalls = x_counters.stalls.load(std::memory_order_relaxed);
  result.forget = x_counters.forget.snapshot();
  result.refault = x_counters.refault.snapshot();
  return result;
}

void ScrubPoolImpl::report_metrics(MetricSink& sink) const {
  const Stats now = stats();
  const std::string_view held = "Memory in the scrub pool.";
  sink.gauge("lethe_pool_bytes", held, static_cast<double>(now.dirty_bytes), {{"state", "dirty"}});
  sink.gauge("lethe_pool_bytes", held, static_cast<double>(now.scrubbing_bytes),
             {{"state", "scrubbing"}});
  sink.gauge("lethe_pool_bytes", held, static_cast<double>(now.clean_bytes), {{"state", "clean"}});
  sink.gauge("lethe_pool_limit_bytes", "What the scrub pool may hold.",
             static_cast<double>(now.bytes_max));
  sink.counter("lethe_pool_moved_bytes_total", "Memory moved from the guest to the pool.",
               now.moved_bytes);
  const std::string_view back = "Missing guest memory filled, by what it was filled with.";
  sink.counter("lethe_pool_refaulted_bytes_total", back, now.refaulted_bytes, {{"by", "pool"}});
  sink.counter("lethe_pool_refaulted_bytes_total", back, now.neighbour_bytes,
               {{"by", "neighbour"}});
  sink.counter("lethe_pool_refaulted_bytes_total", back, now.fresh_bytes, {{"by", "fresh"}});
  sink.counter("lethe_pool_refaulted_bytes_total", back, now.small_bytes, {{"by", "small"}});
  sink.counter("lethe_pool_scrubbed_bytes_total", "Pool memory written over.", now.scrubbed_bytes);
  sink.counter("lethe_pool_expired_bytes_total",
               "Pool memory discarded because it was not scrubbed in time.", now.expired_bytes);
  sink.counter("lethe_pool_trimmed_bytes_total",
               "Pool memory discarded because the pool had to be smaller.", now.trimmed_bytes);
  sink.counter("lethe_pool_lost_bytes_total",
               "Pool memory discarded because it could not be moved back.", now.lost_bytes);
  sink.counter("lethe_pool_refused_total", "Chunks that could not be moved to the pool.",
               now.refused);
  sink.counter("lethe_pool_stalls_total",
               "Faults that were tried again because the host had no memory.", now.stalls);
  sink.histogram("lethe_pool_forget_seconds", "From return to unreadable by anyone.", now.forget);
  sink.histogram("lethe_pool_refault_seconds", "From a fault's message to its memory.",
                 now.refault);
}

}  // namespace

std::unique_ptr<ScrubPool> ScrubPool::create(const GuestMemory& memory,
                                             const ScrubPoolOptions& options) {
  return std::make_unique<ScrubPoolImpl>(memory, options);
}

}  // namespace lethe
