// An io_uring for one thread and one file, whose completions wake an event loop by an eventfd.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <memory>

#include "base/event_fd.h"
#include "base/result.h"

namespace lethe {

// Threading: one thread creates and uses it.
class IoRing {
 public:
  // `entries_max`: how many operations will be in flight at most. `fd` becomes registered file 0
  // and must outlive the ring. Fails when the host has no io_uring or forbids it; the error names
  // the sysctl.
  [[nodiscard]] static Result<std::unique_ptr<IoRing>> create(uint32_t entries_max, int fd);
  ~IoRing();
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  // A cleared submission entry for the registered file. A full queue is submitted first; nothing
  // only when the kernel takes none (out of memory).
  [[nodiscard]] io_uring_sqe* next_entry();
  // Hands over what was prepared. What the kernel can't take now stays for the next call.
  void submit();
  // Calls `done(user_data, result)` for each completion there is; returns how many there were.
  // Completions of cancel_all() and cancel() are not among them.
  template <typename Done>
  unsigned reap(Done&& done) {
    constexpr unsigned kBatch = 64;
    io_uring_cqe* entries[kBatch];
    unsigned total = 0;
    while (const unsigned count = io_uring_peek_batch_cqe(&x_ring, entries, kBatch)) {
      for (unsigned i = 0; i < count; ++i) {
        const uint64_t user_data = entries[i]->user_data;
        if (user_data != 0) done(user_data, entries[i]->res);
      }
      io_uring_cq_advance(&x_ring, count);
      total += count;
      if (count < kBatch) break;
    }
    return total;
  }

  // The eventfd's wakings: off while its owner is at work anyway. arm() returns true if there is
  // something to do already: no waking will come for that.
  void disarm();
  [[nodiscard]] bool arm();
  [[nodiscard]] const EventFd& event() const { return x_event; }

  // Asks the kernel to cancel an operation; it completes all the same, with ECANCELED if that
  // worked.
  void cancel(uint64_t user_data);
  // Submits, and waits for a completion.
  void wait();

 private:
  explicit IoRing(EventFd event) : x_event(std::move(event)) {}
  io_uring x_ring{};
  bool x_open = false;
  EventFd x_event;
};

}  // namespace lethe
