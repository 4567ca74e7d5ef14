#include "devices/virtio/block/io_ring.h"

#include <algorithm>
#include <atomic>
#include <bit>

#include "base/log.h"

namespace lethe {
namespace {

constexpr unsigned kSubmissionsMax = 64;  // more are submitted in several turns
// Completions are handled by the ring's thread when it asks for them, not by interrupting it
// (Linux 6.1). Before that: plain.
constexpr unsigned kSetupFlags =
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;

Unexpected setup_error(int error) {
  if (error == ENOSYS || error == EPERM)
    return host_error(
        "disks need io_uring, which this host {}: sysctl kernel.io_uring_disabled must be 0 (or 1 "
        "with the group of kernel.io_uring_group), and no seccomp filter may forbid it",
        error == ENOSYS ? "does not have" : "does not permit");
  return host_error("can't set up an io_uring: {}{}", errno_text(error),
                    error == ENOMEM ? " (is the limit on locked memory, ulimit -l, too low?)" : "");
}

}  // namespace

Result<std::unique_ptr<IoRing>> IoRing::create(uint32_t entries_max, int fd) {
  LETHE_TRY_ASSIGN(EventFd event, EventFd::create());
  std::unique_ptr<IoRing> ring(new IoRing(std::move(event)));
  const unsigned entries = std::bit_ceil(std::clamp(entries_max, 1u, kSubmissionsMax));
  io_uring_params params{};
  params.flags = kSetupFlags | IORING_SETUP_CQSIZE;
  // Room for each operation's completion and one for its cancelling: it never overflows.
  params.cq_entries = std::bit_ceil(std::max(2 * entries_max, 2 * entries));
  int error = -io_uring_queue_init_params(entries, &ring->x_ring, &params);
  if (error == EINVAL) {
    params.flags = IORING_SETUP_CQSIZE;
    error = -io_uring_queue_init_params(entries, &ring->x_ring, &params);
  }
  if (error != 0) return setup_error(error);
  ring->x_open = true;
  error = -io_uring_register_files(&ring->x_ring, &fd, 1);
  if (error == 0) error = -io_uring_register_eventfd(&ring->x_ring, ring->x_event.fd());
  if (error != 0) return setup_error(error);
  // Saves each system call the look-up of the ring's descriptor. Where it fails all works as well.
  (void)io_uring_register_ring_fd(&ring->x_ring);
  return Result<std::unique_ptr<IoRing>>(std::move(ring));
}

IoRing::~IoRing() {
  if (x_open) io_uring_queue_exit(&x_ring);
}

io_uring_sqe* IoRing::next_entry() {
  io_uring_sqe* entry = io_uring_get_sqe(&x_ring);
  if (entry == nullptr) {
    submit();
    entry = io_uring_get_sqe(&x_ring);
  }
  return entry;
}

void IoRing::submit() {
  if (io_uring_sq_ready(&x_ring) == 0) return;
  int result = 0;
  do {
    result = io_uring_submit(&x_ring);
  } while (result == -EINTR);
  if (result < 0) LETHE_LOG_LIMITED(LogModule::kBlock, "io_uring: {}", errno_text(-result));
}

void IoRing::disarm() { io_uring_cq_eventfd_toggle(&x_ring, false); }

bool IoRing::arm() {
  io_uring_cq_eventfd_toggle(&x_ring, true);
  // SAFETY: store-load order: our flag is stored, then the completion queue looked at; the kernel
  // stores a completion, then looks at the flag (the system call and its locks order that).
  std::atomic_thread_fence(std::memory_order_seq_cst);
  io_uring_cqe* entry = nullptr;
  return io_uring_peek_cqe(&x_ring, &entry) == 0 || io_uring_sq_ready(&x_ring) > 0;
}

void IoRing::cancel(uint64_t user_data) {
  io_uring_sqe* const entry = next_entry();
  if (entry == nullptr) return;  // then it takes its time
  io_uring_prep_cancel64(entry, user_data, 0);
  io_uring_sqe_set_data64(entry, 0);
}

void IoRing::wait() { (void)io_uring_submit_and_wait(&x_ring, 1); }

}  // namespace lethe
