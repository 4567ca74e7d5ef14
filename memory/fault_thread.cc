#include "memory/fault_thread.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "base/log.h"
#include "memory/return_pipeline.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t kFaultsAtOnce = 16;
constexpr milliseconds kSpinInARow{20};
constexpr milliseconds kTrimAgain{5};  // when a worker had in hand what should go

void add(std::atomic<uint64_t>& counter, uint64_t value) {
  counter.fetch_add(value, std::memory_order_relaxed);
}

}  // namespace

std::unique_ptr<FaultThread> FaultThread::start(const World& world, milliseconds forget_max) {
  auto event = EventFd::create();
  if (!event) return nullptr;
  std::unique_ptr<FaultThread> result(new FaultThread(world, forget_max, std::move(*event)));
  try {
    result->x_thread = std::thread([self = result.get()] { self->run(); });
  } catch (const std::system_error&) {
    return nullptr;
  }
  return result;
}

FaultThread::FaultThread(const World& world, milliseconds forget_max, EventFd event)
    : x_world(world),
      x_forget_max(forget_max),
      x_event(std::move(event)),
      x_period(std::clamp(forget_max / 16, milliseconds(1), milliseconds(1000))),
      x_next_tick(steady_clock::now() + x_period) {}

FaultThread::~FaultThread() {
  if (!x_thread.joinable()) return;
  x_stop.store(true, std::memory_order_release);
  x_event.signal();
  x_thread.join();
}

// With the exchange in tick(): whoever makes a chunk dirty finds the timer running, or starts it; a
// timer that is about to stop sees the chunk, because its exchange reads what ours wrote.
void FaultThread::arm() {
  if (!x_armed.exchange(true, std::memory_order_acq_rel)) x_event.signal();
}

void FaultThread::hurry() {
  x_hurry.store(true, std::memory_order_release);
  x_armed.store(true, std::memory_order_release);
  x_event.signal();
}

void FaultThread::run() {
  ::pthread_setname_np(::pthread_self(), "fault");
  while (!x_stop.load(std::memory_order_acquire)) {
    const auto now = steady_clock::now();
    const bool armed = x_armed.load(std::memory_order_relaxed);
    if (x_hurry.exchange(false, std::memory_order_acquire) || (armed && now >= x_next_tick)) {
      tick_now();
      continue;
    }
    auto wait = armed ? std::chrono::ceil<milliseconds>(x_next_tick - now) : milliseconds(-1);
    if (x_follower.following()) wait = armed ? std::min(wait, kFollow) : kFollow;
    pollfd ready[2] = {{.fd = x_world.userfault.fd(), .events = POLLIN, .revents = 0},
                       {.fd = x_event.fd(), .events = POLLIN, .revents = 0}};
    if (::poll(ready, 2, static_cast<int>(wait.count())) <= 0) {
      x_follower.leave();
      continue;
    }
    if ((ready[1].revents & POLLIN) != 0) {
      (void)x_event.take();
      // Newly armed: a time that was set before the timer last stopped is long past.
      if (!armed) x_next_tick = steady_clock::now() + x_period;
    }
    if ((ready[0].revents & POLLIN) != 0) serve_burst();
  }
}

// A guest that faults again soon is answered from the processor that it faults on: while it waits,
// this thread takes its place, and nobody has to be interrupted (cpu_follower.h). Where there is no
// such processor (several fault at the same time) this thread looks on instead of sleeping: a
// wake-up from another processor costs more than all the rest. Who else wants this processor gets
// it: sched_yield() returns at once only if nobody does.
void FaultThread::serve_burst() {
  const auto before = x_answered;
  if (serve() == 0) return;
  // Only if this one came soon: a fault now and then is worth no processor time. And not for ever:
  // the timer is to run.
  const bool soon = x_asked - before <= kSpin;
  if (!soon && !x_follower.following()) return;
  if (x_follower.answered(x_faulter) || !soon) return;
  const auto stop_at = x_answered + kSpinInARow;
  while (steady_clock::now() < std::min(x_answered + kSpin, stop_at)) {
    ::sched_yield();
    if (serve() > 0 && x_follower.answered(x_faulter)) return;
  }
}

bool FaultThread::tick() {
  const bool small_enough = x_world.store.trim(x_world.bytes_max.load(std::memory_order_relaxed));
  x_world.store.expire(steady_clock::now() - x_forget_max / 2);
  if (!small_enough || x_world.store.any_dirty()) return small_enough;
  (void)x_armed.exchange(false, std::memory_order_acq_rel);
  if (x_world.store.any_dirty()) x_armed.store(true, std::memory_order_relaxed);
  return true;
}

void FaultThread::tick_now() {
  const auto now = steady_clock::now();
  x_next_tick = now + (tick() ? x_period : std::min(x_period, kTrimAgain));
}

void FaultThread::tick_if_due() {
  if (x_armed.load(std::memory_order_relaxed) && steady_clock::now() >= x_next_tick) tick_now();
}

size_t FaultThread::serve() {
  std::array<Fault, kFaultsAtOnce> faults;
  const size_t count = x_world.userfault.read_faults(faults);
  if (count == 0) return 0;
  x_asked = steady_clock::now();
  x_faulter = count == 1 ? faults[0].thread : 0;
  for (size_t i = 0; i < count; ++i) {
    {
      const MutexLock lock(x_answering);
      answer(faults[i]);
    }
    x_answered = steady_clock::now();
    x_world.counters.refault.add(x_answered - x_asked);
  }
  return count;
}

void FaultThread::answer(const Fault& fault) {
  if (!x_world.watching.load(std::memory_order_acquire)) {
    // A fault from before: the kernel fills this memory now.
    x_world.userfault.wake(fault.page, kPageBytes);
    return;
  }
  const auto chunk = x_world.guest.chunk_at(fault.page);
  // While guest memory is watched only this thread makes pages in it: what is a hole now stays one
  // until it is filled below.
  if (chunk && x_world.pages.is_hole(x_world.guest.host(*chunk)) && give_chunk(*chunk)) {
    // Woken last: a guest that walks on would else run into its neighbours while they are made.
    const size_t end = give_neighbours(*chunk);
    x_world.userfault.wake(x_world.guest.host(*chunk), (end - *chunk) * kChunkBytes);
    return;
  }
  fill_small(fault);
}

bool FaultThread::give_chunk(size_t chunk) {
  uint8_t* const host = x_world.guest.host(chunk);
  const uint32_t poison = x_world.poison.load(std::memory_order_acquire);
  uint32_t value = 0;
  bool never_there = false;
  if (poison != 0) {
    const auto there = x_world.guest.was_there(host, kChunkBytes);
    if (there == GuestChunks::There::kSome) return false;
    never_there = there == GuestChunks::There::kNone;
    value = never_there ? 0 : poison;
  }
  x_world.guest.set_taken(chunk, false);
  drop_table(host);
  if (!never_there && x_world.store.give_kept(host, value)) {
    add(x_world.counters.by_pool, 1);
  } else {
    tick_if_due();
    make_room(kChunkBytes);
    if (!x_world.store.give_fresh(host, value)) return false;
    use_room(kChunkBytes);
    add(x_world.counters.by_fresh, 1);
  }
  x_world.guest.set_there(host, kChunkBytes);
  return true;
}

// SAFETY: only for a hole: nobody else fills it, so this discards no content, only the page table
// that a fault has left there.
void FaultThread::drop_table(uint8_t* hole) {
  if (x_world.drop_tables) (void)x_world.ops.advise(hole, kChunkBytes, MADV_DONTNEED);
}

size_t FaultThread::give_neighbours(size_t chunk) {
  auto stream = std::find_if(x_streams.begin(), x_streams.end(),
                             [&](const Stream& s) { return s.next == chunk; });
  if (stream == x_streams.end()) {
    stream = x_streams.begin() + static_cast<ptrdiff_t>(x_oldest_stream);
    x_oldest_stream = (x_oldest_stream + 1) % x_streams.size();
    stream->window = 1;
  } else {
    stream->window = std::min(stream->window * 2, kNeighboursMax);
  }
  const uint32_t poison = x_world.poison.load(std::memory_order_acquire);
  size_t next = chunk + 1;
  for (; next < chunk + stream->window; ++next) {
    if (!x_world.guest.same_region(chunk, next) || !x_world.guest.taken(next)) break;
    uint8_t* const host = x_world.guest.host(next);
    if (poison != 0 && x_world.guest.was_there(host, kChunkBytes) != GuestChunks::There::kAll)
      break;
    if (!x_world.pages.is_hole(host)) break;
    drop_table(host);
    if (!x_world.store.give_clean(host, poison)) break;
    x_world.guest.set_taken(next, false);
    x_world.guest.set_there(host, kChunkBytes);
    add(x_world.counters.by_neighbour, 1);
  }
  stream->next = next;
  return next;
}

// Guest and pool together are to grow no more than the guest alone would without a pool: where
// memory is short (at a cgroup's limit, say) the kernel kills, and asks nobody first. A whole chunk
// comes out of the pool anyway; what is made anew takes a chunk's place there.
void FaultThread::make_room(uint64_t bytes) {
  if (x_room < bytes && x_world.store.drop_one()) x_room += kChunkBytes;
}

void FaultThread::use_room(uint64_t bytes) { x_room -= std::min(x_room, bytes); }

void FaultThread::fill_small(const Fault& fault) {
  make_room(kAroundPages * kPageBytes);
  const int error = fill_page(fault);
  if (error == 0) {
    add(x_world.counters.small_bytes, kPageBytes);
    use_room(kPageBytes);
    x_world.guest.set_there(fault.page, kPageBytes);
    if (x_world.poison.load(std::memory_order_acquire) == 0) fill_around(fault.page);
    return;
  }
  // EEXIST: an earlier answer has filled it. ENOENT: not watched any more. Else the host has no
  // memory, or the address space is changing: the guest tries again.
  if (error != EEXIST && error != ENOENT) {
    add(x_world.counters.stalls, 1);
    LETHE_LOG_LIMITED(LogModule::kMemory, "cannot fill a page of guest memory: {}; trying again",
                      errno_text(error));
    std::this_thread::sleep_for(kStall);
  }
  x_world.userfault.wake(fault.page, kPageBytes);
}

int FaultThread::fill_page(const Fault& fault) {
  const uint32_t poison = x_world.poison.load(std::memory_order_acquire);
  const Userfault& userfault = x_world.userfault;
  uint64_t done = 0;
  // SAFETY (casts): a page of words, read as bytes.
  if (poison != 0 && x_world.guest.was_there(fault.page, kPageBytes) == GuestChunks::There::kAll) {
    if (x_pattern->words[0] != poison) x_pattern->words.fill(poison);
    return userfault.fill_copy(fault.page, reinterpret_cast<uint8_t*>(x_pattern.get()), kPageBytes,
                               done);
  }
  if (fault.write) {
    const int error =
        userfault.fill_copy(fault.page, reinterpret_cast<uint8_t*>(x_zero.get()), kPageBytes, done);
    if (error != ENOMEM) return error;
  }
  // The zero page needs no memory; a write to it is then between the guest and the kernel.
  return userfault.fill_zero(fault.page, kPageBytes, done);
}

void FaultThread::fill_around(uint8_t* page) {
  const GuestChunks::Region* const region = x_world.guest.find(page);
  if (region == nullptr) return;
  uint8_t* const next = page + kPageBytes;
  const uint64_t in_chunk =
      (kChunkBytes - reinterpret_cast<uintptr_t>(next) % kChunkBytes) % kChunkBytes;
  const auto in_region = static_cast<uint64_t>(region->host + region->size - next);
  const uint64_t size = std::min({in_chunk, in_region, (kAroundPages - 1) * kPageBytes});
  uint64_t done = 0;
  if (size > 0) (void)x_world.userfault.fill_zero(next, size, done);
  add(x_world.counters.small_bytes, done);
  use_room(done);
}

}  // namespace lethe
