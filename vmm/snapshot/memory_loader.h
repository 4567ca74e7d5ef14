// Guest memory as it comes out of a snapshot: each block is read, checked and put in place when the
// guest (or a device, or the host) first touches it; the rest in the background, one after the
// other. A page that nobody has checked is never seen.
//
// How: userfaultfd(2) on all RAM, and one thread, `restore`, that answers the faults and loads on
// when there are none. Copies, not a private mapping of the file: discarding a page of such a
// mapping would bring the old content back, and the scrub pool can only move anonymous memory.
// Where userfaultfd is not permitted, or memory is not anonymous, all of it is loaded at once.
//
// When all has come the thread ends and faults go to the kernel again.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/event_fd.h"
#include "base/mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/return_pipeline.h"
#include "memory/userfault.h"
#include "vmm/snapshot/memory_file.h"

namespace lethe {

struct MemoryLoaderOptions {
  bool at_once = false;  // load all of it before anything runs
  // A block is altered or can't be read: who touched it can't be let go on. Must not return in a
  // process that runs a guest. On any thread, under the loader's lock.
  std::function<void(const Error&)> on_failure{};
  // Once, on any thread, when all has come; not if create() loaded all.
  std::function<void()> on_complete{};
  PoolOps* ops = nullptr;  // none: the system's
};

class MemoryLoader final : public PendingMemory {
 public:
  // `file` has the size that `table` says. Guest memory is still untouched. Errors: as read_block()
  // if all is loaded at once.
  [[nodiscard]] static Result<std::unique_ptr<MemoryLoader>> create(const GuestMemory& memory,
                                                                    UniqueFd file,
                                                                    MemoryTable table,
                                                                    MemoryLoaderOptions options);
  // Nobody touches guest memory any more.
  ~MemoryLoader() override;

  void drop(const uint8_t* host, uint64_t size) override LETHE_EXCLUDES(x_mutex);
  void fetch(const uint8_t* host, uint64_t size) override LETHE_EXCLUDES(x_mutex);
  void fetch_all() LETHE_EXCLUDES(x_mutex);
  [[nodiscard]] bool complete() const override {
    return x_complete.load(std::memory_order_acquire);
  }

 private:
  struct Region {
    uint8_t* host = nullptr;
    uint64_t size = 0;
    uint64_t base = 0;  // in the file
  };
  struct Pending {
    MemoryBlock block;
    uint16_t left = 0;  // pages that are still to come
  };
  struct alignas(kPageBytes) Buffer {
    std::array<uint8_t, kBlockBytes> bytes;
  };

  MemoryLoader(const GuestMemory& memory, UniqueFd file, MemoryTable table,
               MemoryLoaderOptions options);
  [[nodiscard]] bool watch();
  [[nodiscard]] Result<> load_at_once();
  void run();
  void answer(const Fault& fault) LETHE_EXCLUDES(x_mutex);
  [[nodiscard]] bool load_next() LETHE_EXCLUDES(x_mutex);
  // False: on_failure was told, or the loader is about to end.
  bool load(Pending& pending) LETHE_REQUIRES(x_mutex);
  [[nodiscard]] bool put_in_place(uint8_t* to, const uint8_t* from, uint64_t size);
  void end_if_complete() LETHE_REQUIRES(x_mutex);
  // Calls for each block that touches the range with those of its pages that are in it.
  template <typename Call>
  void for_blocks(const uint8_t* host, uint64_t size, Call call) LETHE_REQUIRES(x_mutex);
  [[nodiscard]] uint8_t* host_of(const MemoryBlock& block) const;

  const MemoryLoaderOptions x_options;
  const UniqueFd x_file;
  std::vector<Region> x_regions;
  std::unique_ptr<Userfault> x_userfault;  // null: all was loaded at once
  std::optional<EventFd> x_stop;
  std::thread x_thread;
  std::atomic<bool> x_complete{false};
  std::atomic<bool> x_ending{false};
  const std::unique_ptr<Buffer> x_zeros;

  Mutex x_mutex;
  std::vector<Pending> x_pending LETHE_GUARDED_BY(x_mutex);  // by number; those done have left == 0
  size_t x_left LETHE_GUARDED_BY(x_mutex) = 0;               // blocks with something left
  size_t x_next LETHE_GUARDED_BY(x_mutex) = 0;               // where the background load is
  const std::unique_ptr<Buffer> x_buffer;                    // under the lock
};

}  // namespace lethe
