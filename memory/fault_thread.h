// The thread that answers userfaults: the guest, or the host on its behalf, touched memory that is
// not there.
//
// It never touches guest memory itself and never waits for a thread that does: so whoever waits for
// it gets an answer.
//
// - A chunk with no page at all gets a clean one of the pool's, else a dirty one scrubbed here and
//   now, else a fresh one. With it go neighbours: while a guest walks through memory it gave back,
//   twice as many chunks each time, up to kNeighboursMax; a move costs 1 us, a wake-up 100. The
//   guest is woken last: it would run into the chunks that are being put before it.
//   The fault itself costs least if guest memory is not marked for huge pages: the kernel clears a
//   huge page before it asks us, and throws it away. But then it leaves an empty page table in the
//   hole, where a huge page can only be put in pieces; MADV_DONTNEED over the hole takes that away
//   (Linux 6.14). `drop_tables` says that this works here, and is done.
// - A page missing between others is filled alone, with up to kAroundPages after it (the kernel's
//   zero page, which costs no memory).
// - No memory on the host: the fault is let run into the next try after kStall; nobody waits longer
//   than the host's shortage lasts.
// - While it answers one thread again and again it runs on that thread's processor.
//
// The same thread is the timer that keeps the promise to forget: it discards chunks that stay dirty
// for half of forget_max, because workers at idle priority may get no time at all. A fresh chunk
// may take the host long (reclaim), so the timer, if it is due, runs before.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "base/event_fd.h"
#include "base/mutex.h"
#include "memory/chunk_store.h"
#include "memory/cpu_follower.h"
#include "memory/guest_chunks.h"
#include "memory/page_map.h"
#include "memory/userfault.h"

namespace lethe {

inline constexpr size_t kNeighboursMax = 32;  // chunks given with one fault, its own included
inline constexpr uint64_t kAroundPages = 16;  // 4 KiB pages
inline constexpr std::chrono::milliseconds kStall{1};
inline constexpr std::chrono::microseconds kSpin{400};  // looks on for so long; see serve_burst()
// Stays so long on a processor whose thread faults no more. Longer than the kernel's tick: an
// earlier timeout would have to be set in the processor's timer at each poll(), which leaves a
// virtual machine (10 us and more).
inline constexpr std::chrono::milliseconds kFollow{20};

class FaultThread {
 public:
  // All of it must outlive the thread.
  struct World {
    const Userfault& userfault;
    const PageMap& pages;
    GuestChunks& guest;
    ChunkStore& store;
    PoolCounters& counters;
    PoolOps& ops;
    const std::atomic<bool>& watching;  // faults are ours; changed under exclude_answers() only
    const std::atomic<uint64_t>& bytes_max;
    // What returned memory reads as; not 0 only once guest.remember_pages() is done.
    const std::atomic<uint32_t>& poison;
    bool drop_tables;
  };
  // Starts the thread. Nothing if the process is out of descriptors or threads.
  [[nodiscard]] static std::unique_ptr<FaultThread> start(const World& world,
                                                          std::chrono::milliseconds forget_max);
  ~FaultThread();
  // While it is locked no fault is answered: for whoever changes what is watched. It must not touch
  // guest memory with it.
  [[nodiscard]] Mutex& exclude_answers() { return x_answering; }
  // Makes the timer run: there is a dirty chunk. Any thread.
  void arm();
  // Makes it run now: the pool holds more than it may. Any thread.
  void hurry();

 private:
  FaultThread(const World& world, std::chrono::milliseconds forget_max, EventFd event);
  void run();
  // False: the pool still holds too much.
  bool tick();
  void tick_now();
  void tick_if_due();
  void serve_burst();
  // Answers the faults that wait; how many.
  size_t serve();
  void answer(const Fault& fault) LETHE_REQUIRES(x_answering);
  [[nodiscard]] bool give_chunk(size_t chunk) LETHE_REQUIRES(x_answering);
  // The number of the first chunk behind them.
  size_t give_neighbours(size_t chunk) LETHE_REQUIRES(x_answering);
  void drop_table(uint8_t* hole) LETHE_REQUIRES(x_answering);
  void make_room(uint64_t bytes);
  void use_room(uint64_t bytes);
  void fill_small(const Fault& fault);
  [[nodiscard]] int fill_page(const Fault& fault);
  void fill_around(uint8_t* page);

  World x_world;
  std::chrono::milliseconds x_forget_max;
  EventFd x_event;
  Mutex x_answering;
  std::atomic<bool> x_armed{false};
  std::atomic<bool> x_hurry{false};
  std::atomic<bool> x_stop{false};

  const std::chrono::milliseconds x_period;  // of the timer
  std::chrono::steady_clock::time_point x_next_tick;
  std::chrono::steady_clock::time_point x_asked;     // when the last faults were read
  std::chrono::steady_clock::time_point x_answered;  // and when the last was answered

  CpuFollower x_follower;
  pid_t x_faulter = 0;  // the thread whose fault was read last; 0: there were several

  // Walks through memory: the chunk each would touch next, and how many it got last time.
  struct Stream {
    size_t next = SIZE_MAX;
    size_t window = 1;
  };
  std::array<Stream, 4> x_streams;
  size_t x_oldest_stream = 0;
  // Bytes that the pool gave to the host for what is made anew in guest memory, and not yet used.
  uint64_t x_room = 0;
  // A page of zeros and one of the poison value.
  struct alignas(4096) Page {
    std::array<uint32_t, 1024> words{};
  };
  std::unique_ptr<Page> x_zero = std::make_unique<Page>();
  std::unique_ptr<Page> x_pattern = std::make_unique<Page>();

  std::thread x_thread;
};

}  // namespace lethe
