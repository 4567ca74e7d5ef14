// A userfaultfd, with the operations the scrub pool needs. ioctl_userfaultfd(2).
//
// Threading: any thread; read_faults() one thread. Operations return 0 or an errno value.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <span>

#include "base/unique_fd.h"
#include "memory/pool_ops.h"

namespace lethe {

struct MoveOutcome {
  uint64_t moved = 0;  // bytes, from the range's start
  int error = 0;       // 0: all of it
};

struct Fault {
  uint8_t* page = nullptr;  // 4 KiB aligned
  bool write = false;
  pid_t thread = 0;  // who waits for it; 0 if that is none of this process's
};

class Userfault {
 public:
  // With `move`: one that can UFFDIO_MOVE (Linux 6.8). Nothing, and `error` set, if the kernel
  // refuses: EPERM forbidden, EINVAL no such feature.
  [[nodiscard]] static std::unique_ptr<Userfault> open(PoolOps& ops, bool move, int& error);

  [[nodiscard]] int fd() const { return x_fd.get(); }

  // Missing pages of the range fault to read_faults() from now on.
  [[nodiscard]] int watch_missing(uint8_t* at, uint64_t size) const;
  // Makes the range a possible destination of move(): UFFDIO_MOVE wants it registered. Its missing
  // pages still fault to the kernel.
  [[nodiscard]] int watch_nothing(uint8_t* at, uint64_t size) const;
  // Faults go to the kernel again; threads that wait are woken.
  void unwatch(uint8_t* at, uint64_t size) const;
  void wake(uint8_t* at, uint64_t size) const;

  // Fills missing pages; wakes who waits for them. `done`: bytes filled from the start; EEXIST: the
  // next page is there already, ENOENT: the range is not watched (any more).
  [[nodiscard]] int fill_zero(uint8_t* at, uint64_t size, uint64_t& done) const;
  [[nodiscard]] int fill_copy(uint8_t* at, const uint8_t* from, uint64_t size,
                              uint64_t& done) const;
  // Moves whole pages; wakes nobody. Retries what the kernel calls a race, some times.
  // EEXIST: a page is at `to` already; ENOENT: none at `from`; EBUSY: pinned or shared.
  [[nodiscard]] MoveOutcome move(uint8_t* to, uint8_t* from, uint64_t size) const;

  // Reads faults that wait; how many. Never blocks.
  [[nodiscard]] size_t read_faults(std::span<Fault> faults) const;

 private:
  Userfault(PoolOps& ops, int fd) : x_ops(&ops), x_fd(fd) {}
  PoolOps* x_ops;
  UniqueFd x_fd;
};

}  // namespace lethe
